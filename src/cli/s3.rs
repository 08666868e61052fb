//! Who asks an S3 service, from the environment: read here, as the user that the command runs as.

use crate::api::{Failed, S3Access};

use super::args::Put;
use super::pooled::wrong;

/// AWS answers it for buckets of every region, and other services ignore regions.
const REGION: &str = "us-east-1";

/// # Errors
/// Where there are no credentials.
pub(super) fn access(options: &Put) -> Result<S3Access, Failed> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some((access_key, secret_key)) = env("AWS_ACCESS_KEY_ID").zip(env("AWS_SECRET_ACCESS_KEY")) else {
        return Err(wrong(
            "there are no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into(),
        ));
    };
    let region = options.region.clone().or_else(|| env("AWS_REGION"));
    Ok(S3Access {
        endpoint: options.endpoint.clone().or_else(|| env("AWS_ENDPOINT_URL")),
        region: region.unwrap_or_else(|| REGION.into()),
        access_key,
        secret_key,
        session_token: env("AWS_SESSION_TOKEN"),
    })
}
