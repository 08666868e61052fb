//! What an origin answers: an honest range server's reply, to be bent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Request;

/// Bodies are written in pieces of this size, so that a rate can be kept.
const STEP: usize = 64 << 10;

/// What comes after the head.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    /// A part of the content.
    Part(Arc<Vec<u8>>, std::ops::Range<usize>),
    Bytes(Vec<u8>),
    /// The same, in chunks of Transfer-Encoding; the last chunk only where told.
    Chunked(Vec<u8>, bool),
    /// Nothing more is ever sent, the connection stays open.
    Silence,
}

/// What happens after the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    KeepAlive,
    Close,
    /// Closed without TLS's close_notify.
    Cut,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) end: End,
    /// Before the head.
    pub(crate) delay: Duration,
    /// Bytes a second. `None`: as fast as it goes.
    pub(crate) rate: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::None,
            end: End::KeepAlive,
            delay: Duration::ZERO,
            rate: None,
        }
    }

    /// A status without content.
    pub(crate) fn empty(status: u16) -> Self {
        Self::new(status).with("content-length", "0")
    }

    /// A page of text.
    pub(crate) fn page(status: u16, text: &str) -> Self {
        let mut page = Self::new(status)
            .with("content-type", "text/html")
            .with("content-length", &text.len().to_string());
        page.body = Body::Bytes(text.into());
        page
    }

    /// What an honest server says: 206 for a range (with If-Range honoured), 200 for none, 416 beyond the end.
    pub(crate) fn honest(request: &Request, data: &Arc<Vec<u8>>, etag: &str) -> Self {
        let total = data.len() as u64;
        let fresh = request.header("if-range").is_none_or(|tag| tag == etag);
        match request.range.filter(|_| fresh) {
            Some((start, _)) if start >= total => {
                Self::empty(416).with("content-range", &format!("bytes */{total}"))
            }
            Some((start, end)) => Self::partial(data, start, end.min(total)).with("etag", etag),
            None => {
                let mut whole = Self::new(200)
                    .with("etag", etag)
                    .with("content-length", &total.to_string());
                whole.body = Body::Part(data.clone(), 0..data.len());
                whole
            }
        }
    }

    /// A 206 with these bytes, without validator.
    pub(crate) fn partial(data: &Arc<Vec<u8>>, start: u64, end: u64) -> Self {
        let mut part = Self::new(206)
            .with(
                "content-range",
                &format!("bytes {start}-{}/{}", end - 1, data.len()),
            )
            .with("content-length", &(end - start).to_string());
        part.body = Body::Part(data.clone(), start as usize..end as usize);
        part
    }

    /// With this header instead of one of the same name.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without this header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    pub(crate) fn rate(mut self, bytes_per_second: usize) -> Self {
        self.rate = Some(bytes_per_second);
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Only the first `n` bytes of the body, as if the connection broke there.
    pub(crate) fn cut_after(mut self, n: usize) -> Self {
        if let Body::Part(_, range) = &mut self.body {
            range.end = range.end.min(range.start + n);
        }
        self.end(End::Cut)
    }

    pub(crate) async fn write<S: AsyncWrite + Unpin>(self, stream: &mut S) -> io::Result<End> {
        tokio::time::sleep(self.delay).await;
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        match &self.body {
            Body::None => {}
            Body::Part(data, range) => self.bytes(stream, &data[range.clone()]).await?,
            Body::Bytes(bytes) => self.bytes(stream, bytes).await?,
            Body::Chunked(bytes, complete) => {
                for chunk in bytes.chunks(10_000) {
                    stream
                        .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
                        .await?;
                    stream.write_all(chunk).await?;
                    stream.write_all(b"\r\n").await?;
                }
                if *complete {
                    stream.write_all(b"0\r\n\r\n").await?;
                }
            }
            Body::Silence => std::future::pending().await,
        }
        stream.flush().await?;
        Ok(self.end)
    }

    async fn bytes<S: AsyncWrite + Unpin>(&self, stream: &mut S, bytes: &[u8]) -> io::Result<()> {
        let Some(rate) = self.rate else {
            return stream.write_all(bytes).await;
        };
        let began = tokio::time::Instant::now();
        let mut sent = 0;
        for step in bytes.chunks(STEP.min(rate / 20).max(1)) {
            stream.write_all(step).await?;
            stream.flush().await?;
            sent += step.len();
            tokio::time::sleep_until(began + Duration::from_secs_f64(sent as f64 / rate as f64)).await;
        }
        Ok(())
    }
}
