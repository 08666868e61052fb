//! Who asks an S3 service, and which: found here, as the user that the command runs as, because only that one can read its
//! own files.

use crate::api::{Failed, S3Access};
use crate::upload::s3::credentials::{Given, find};

use super::args::Put;
use super::pooled::wrong;

/// # Errors
/// Where something is missing or cannot be read; says where it was looked for.
pub(super) fn access(options: &Put) -> Result<S3Access, Failed> {
    let given = Given {
        endpoint: options.endpoint.clone(),
        region: options.region.clone(),
        profile: options.profile.clone(),
    };
    let found = find(&given, |name| std::env::var(name).ok()).map_err(|e| wrong(e.to_string()))?;
    Ok(S3Access {
        endpoint: found.endpoint.map(Into::into),
        region: found.region,
        access_key: found.access_key,
        secret_key: found.secret_key,
        session_token: found.session_token,
    })
}
