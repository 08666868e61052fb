//! What downloads and uploads share: which lanes may serve, one HTTP connection over a lane, TLS towards origins, and how a
//! transfer's progress is told.

mod activity;
mod choice;
mod client;
mod progress;
mod tls;

pub use choice::{Planned, plan};
pub use progress::{LaneProgress, LaneState, Phase, Progress};
pub use tls::{TlsError, client_config, config_with};

pub(crate) use activity::{Activity, Failing, fails};
pub(crate) use choice::{Choice, Record, Terms, has, sort_out};
pub(crate) use client::{Connection, Endpoint, HEAD_LIMIT, OpenError, Payload, nothing};
pub(crate) use progress::{Standing, unused};
