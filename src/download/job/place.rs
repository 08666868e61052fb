//! A download's file: what an earlier run left of it, where it goes, when it is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FIRST, Run};
use crate::download::answer::Known;
use crate::download::ask::Answer;
use crate::download::error::DownloadError;
use crate::download::name;
use crate::download::{Destination, Phase};
use crate::store::Claim;
use crate::store::Generation;
use crate::store::OpenOptions;
use crate::store::PartFile;
use crate::store::Resumed;
use crate::store::StoreError;
use crate::store::peek;
use crate::types::ByteRange;

/// What is there already of the content.
pub(super) struct Resume {
    pub(super) path: PathBuf,
    pub(super) part: Arc<PartFile>,
    pub(super) known: Known,
}

impl Run {
    /// What an earlier run left, where it can be continued.
    pub(super) async fn resume(&mut self) -> Result<Option<Resume>, DownloadError> {
        let path = self.path(None);
        let at = path.clone();
        let Some(claim) = self.blocking(move || peek(&at)).await? else {
            return Ok(None);
        };
        let sha256 = self.shared.job.sha256;
        let now = Claim::new(self.shared.job.url.as_str(), claim.generation().cloned(), sha256);
        let generation = claim.generation().cloned();
        let (None, true, Some(generation)) = (claim.difference(&now), now.is_resumable(), generation) else {
            return Ok(None);
        };
        let (part, resumed) = self.open_part(&path, now).await?;
        let Resumed::From { bytes, .. } = resumed else {
            return Ok(None);
        };
        tracing::debug!(bytes, "continuing an earlier download");
        self.resumable = true;
        self.progress.send_modify(|p| {
            p.resumed = bytes;
            p.done = bytes;
        });
        let known = Known {
            generation,
            media: None,
        };
        Ok(Some(Resume { path, part, known }))
    }

    /// Opens the file for an answer's content; what is there of another version of it stays aside until this is done.
    pub(super) async fn open(
        &self,
        answer: &Answer,
        generation: Option<Generation>,
    ) -> Result<(PathBuf, Arc<PartFile>, u64), DownloadError> {
        let path = self.path(Some(answer));
        let claim = Claim::new(self.shared.job.url.as_str(), generation, self.shared.job.sha256);
        let (part, resumed) = self.open_part(&path, claim).await?;
        let resumed = match resumed {
            Resumed::From { bytes, .. } => bytes,
            Resumed::Fresh(why) => {
                tracing::debug!(%why, "starting from the first byte");
                0
            }
        };
        self.progress.send_modify(|p| {
            p.resumed = resumed;
            p.done = resumed;
        });
        Ok((path, part, resumed))
    }

    async fn open_part(&self, path: &Path, claim: Claim) -> Result<(Arc<PartFile>, Resumed), DownloadError> {
        let at = path.to_owned();
        let open = move || {
            let options = OpenOptions {
                overwrite: false,
                restart: true,
            };
            PartFile::open(&at, &claim, options)
        };
        let (part, resumed) = self.blocking(open).await?;
        self.progress.send_modify(|p| {
            p.name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
        });
        Ok((Arc::new(part), resumed))
    }

    fn path(&self, answer: Option<&Answer>) -> PathBuf {
        match &self.to {
            Destination::File(path) => path.clone(),
            Destination::Directory(directory) => {
                // The name is the one the user asked for, not that of some cache it was redirected to.
                directory.join(name::of(&self.shared.job.url, answer.map(|a| &a.head)))
            }
        }
    }

    pub(super) async fn finish(&self, part: Arc<PartFile>) -> Result<(), DownloadError> {
        self.progress.send_modify(|p| p.phase = Phase::Finishing);
        let sha256 = self.shared.job.sha256;
        self.blocking(move || part.finish(sha256)).await?;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, DownloadError> {
        let done = self.shared.tasks.blocking(work).await;
        Ok(done.map_err(|_panicked| DownloadError::Stopped { resumable: true })??)
    }
}

impl Resume {
    /// The first bytes that are missing; the last byte where none is, so that the version can be checked.
    pub(super) fn wanted(&self) -> ByteRange {
        let total = self.known.generation.total;
        let missing = self.part.written().gaps(ByteRange::new(0, total));
        match missing.first() {
            Some(gap) => ByteRange::new(gap.start, gap.end.min(gap.start + FIRST)),
            None => ByteRange::new(total.saturating_sub(1), total),
        }
    }
}
