//! A download as one stream: from an answer that carries everything, or from new ones, begun again when it breaks.

use std::time::Instant;

use super::{MIN_MEASURED, Next, Run};
use crate::download::answer::{Verdict, Why, media};
use crate::download::ask::{Answer, Question};
use crate::download::error::DownloadError;
use crate::download::flow::FlowError;
use crate::download::probe::First;
use crate::download::single::Stream;
use crate::store::Generation;
use crate::types::Rate;

/// How often a stream that cannot be continued is begun again.
const MAX_STREAMS: u32 = 3;

impl Run {
    /// Fetches everything as one stream, from an answer that carries it or from new ones.
    pub(super) async fn stream(
        &mut self,
        mut got: Option<(First, Option<u64>)>,
    ) -> Result<Next, DownloadError> {
        self.resumable = false;
        let mut detail = String::new();
        for turn in 0..MAX_STREAMS {
            let (First { answer, route, .. }, len) = match got.take() {
                Some(got) => got,
                None => self.ask_for_all(turn).await?,
            };
            let generation = len.map(|total| Generation {
                total,
                validator: None,
            });
            let (part, _) = self.open(&answer, generation).await?;
            let info = route.lane.info().clone();
            let started = Instant::now();
            let stream = Stream {
                answer,
                route,
                len,
                part: part.clone(),
                progress: self.progress.clone(),
                lanes: self.lanes.clone(),
            };
            let stop = self.stop.clone();
            let Some(result) = stop.run_until_cancelled(Box::pin(stream.run())).await else {
                return Err(self.stopped());
            };
            match result {
                Ok(bytes) => {
                    let rate = (bytes >= MIN_MEASURED).then(|| Rate::of(bytes, started.elapsed()));
                    let path = self.finish(part).await?;
                    let done = self.outcome(path, bytes, vec![(info, bytes)], rate);
                    return Ok(Next::Done(Box::new(done)));
                }
                Err(FlowError::Store(error)) => return Err(error.into()),
                Err(error) => detail = error.to_string(),
            }
        }
        Err(DownloadError::Broken {
            host: self.shared.host(),
            times: MAX_STREAMS,
            detail,
        })
    }

    async fn ask_for_all(&mut self, turn: u32) -> Result<(First, Option<u64>), DownloadError> {
        // A stream that broke on one lane is tried on the next.
        let (got, _) = self.ask_any(false, turn, &Question::default(), None).await?;
        let why = match &got.verdict {
            Verdict::Whole { encoded: true, .. } if !is_archive(&got.answer) => Why::Encoded,
            Verdict::Whole { len, .. } => {
                let len = *len;
                return Ok((got, len));
            }
            Verdict::Ineligible(Why::Status(status)) => {
                return Err(DownloadError::Status {
                    host: self.shared.host(),
                    status: *status,
                });
            }
            _ => Why::Status(got.answer.status),
        };
        self.unusable(&why)
    }
}

/// Whether content that comes compressed without being asked for is an archive as such (HTTP-10).
pub(super) fn is_archive(answer: &Answer) -> bool {
    let path = answer.url.path().to_ascii_lowercase();
    let by_name = [".gz", ".tgz", ".bz2", ".xz", ".zst", ".br", ".z"]
        .iter()
        .any(|end| path.ends_with(end));
    let by_type = media(&answer.head).is_some_and(|m| m.contains("gzip") || m.contains("compressed"));
    by_name || by_type
}
