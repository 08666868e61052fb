//! The household over real links on loopback: who is told what, what comes of it, and what those who mean no good achieve.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "helpers of tests fail by panicking"
)]

mod evil;
mod house;
mod speed;
mod told;

use std::time::Duration;

use tributary::share::{Holder, Sharing};
use tributary::types::PeerId;

/// What the view says of a member, once it says that.
pub async fn until(sharing: &Sharing, peer: PeerId, so: impl Fn(Option<&Holder>) -> bool) {
    let mut changes = sharing.changes();
    let seen = async {
        loop {
            let view = sharing.view();
            if so(view.holders.iter().find(|holder| holder.peer == peer)) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen)
        .await
        .unwrap_or_else(|_| panic!("it never came: {:?}", sharing.view()));
}

/// Waits until that member can be asked for so many bytes.
pub async fn until_has(sharing: &Sharing, peer: PeerId, bytes: u64) {
    until(sharing, peer, |holder| {
        holder.is_some_and(|h| h.have.len() == bytes)
    })
    .await;
}
