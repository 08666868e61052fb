//! A download's file: what an earlier run left of it, where it goes, when it is done.

use std::path::PathBuf;
use std::sync::Arc;

use super::{FIRST, Run};
use crate::download::answer::Known;
use crate::download::ask::Answer;
use crate::download::error::DownloadError;
use crate::download::files;
use crate::download::name;
use crate::store::Claim;
use crate::store::Generation;
use crate::store::Part;
use crate::store::Resumed;
use crate::transfer::Phase;
use crate::types::ByteRange;

/// What is there already of the content.
pub(super) struct Resume {
    pub(super) part: Arc<Part>,
    pub(super) known: Known,
}

impl Run {
    /// What an earlier run left, where it can be continued.
    pub(super) async fn resume(&mut self) -> Result<Option<Resume>, DownloadError> {
        let name = self.name(None);
        let Some(claim) = self.shared.files.peek(name.clone()).await? else {
            return Ok(None);
        };
        let sha256 = self.shared.job.sha256;
        let now = Claim::new(self.shared.job.url.as_str(), claim.generation().cloned(), sha256);
        let generation = claim.generation().cloned();
        let (None, true, Some(generation)) = (claim.difference(&now), now.is_resumable(), generation) else {
            return Ok(None);
        };
        let (part, resumed) = self.open_part(name, now).await?;
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
        Ok(Some(Resume { part, known }))
    }

    /// Opens the file for an answer's content; what is there of another version of it stays aside until this is done.
    pub(super) async fn open(
        &self,
        answer: &Answer,
        generation: Option<Generation>,
    ) -> Result<(Arc<Part>, u64), DownloadError> {
        let claim = Claim::new(self.shared.job.url.as_str(), generation, self.shared.job.sha256);
        self.open_claimed(self.name(Some(answer)), claim).await
    }

    /// Opens the file for what is claimed. Returns also how much of it is there.
    pub(super) async fn open_claimed(
        &self,
        name: String,
        claim: Claim,
    ) -> Result<(Arc<Part>, u64), DownloadError> {
        let (part, resumed) = self.open_part(name, claim).await?;
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
        Ok((part, resumed))
    }

    async fn open_part(&self, name: String, claim: Claim) -> Result<(Arc<Part>, Resumed), DownloadError> {
        let shared = &self.shared;
        let (name, part, resumed) = files::open(&*shared.files, name, claim, &shared.tasks).await?;
        self.progress.send_modify(|p| p.name = name);
        Ok((Arc::new(part), resumed))
    }

    /// The name is the one the user asked for, not that of some cache it was redirected to.
    fn name(&self, answer: Option<&Answer>) -> String {
        name::of(&self.shared.job.url, answer.map(|a| &a.head))
    }

    pub(super) async fn finish(&self, part: Arc<Part>) -> Result<PathBuf, DownloadError> {
        self.progress.send_modify(|p| p.phase = Phase::Finishing);
        let shared = &self.shared;
        files::finish(&*shared.files, part, shared.job.sha256, &shared.tasks).await
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
