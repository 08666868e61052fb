//! The only place that spawns, and what keeps tasks from flooding the log. Each task has a name (its tracing span), is
//! counted, and hears one token that ends it.
//!
//! Invariant: when [`Tasks::stop`] returns, every task of this scope has ended or was told to and the grace is over.

mod seldom;

pub use seldom::Seldom;

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Runs `future` in a thread of its own until the process ends, with timers and signals of its own. For what must go on
/// when a worker of the runtime hangs in a system call: where that worker was the one that waited for events, the others
/// wait for it, and no timer of theirs goes off and no signal is heard.
///
/// # Errors
/// Where there is no thread to be had.
pub fn spawn_apart<F>(name: &'static str, future: F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(move || runtime.block_on(future)).map(drop)
}

/// A scope of tasks. Clones share it; [`Tasks::child`] makes one inside it that can be ended alone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// A scope of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope that ends with this one, or earlier by itself. Its tasks are counted apart.
    pub fn child(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: self.token.child_token(),
        }
    }

    /// Runs `future` until it ends or the scope does; dropping it at any await must be safe.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        let task = async move { token.run_until_cancelled(future).await };
        self.tracker
            .spawn(task.instrument(tracing::debug_span!("task", name)))
    }

    /// Runs `future` to its own end: it must watch [`Tasks::token`] itself, because it has something to put in order.
    pub fn spawn_graceful<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker
            .spawn(future.instrument(tracing::debug_span!("task", name)))
    }

    /// Runs blocking work (file I/O, name resolution) on the pool for it.
    pub fn blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// The token that ends this scope.
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Ends the scope and waits for its tasks, `grace` at most. Returns whether all of them ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stopping_a_scope_ends_its_tasks_and_its_childrens_token() {
        let tasks = Tasks::new();
        let child = tasks.child();
        let running = tasks.spawn("forever", std::future::pending::<()>());
        assert!(tasks.stop(Duration::from_secs(1)).await);
        assert_eq!(running.await.unwrap(), None);
        assert!(child.token().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_ends_without_its_parent() {
        let tasks = Tasks::new();
        assert!(tasks.child().stop(Duration::from_secs(1)).await);
        assert!(!tasks.token().is_cancelled());
    }
}
