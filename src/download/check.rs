//! Has the content changed, or does only one lane see another version? Asked again over the home lane (HTTP-8, HTTP-9).

use std::sync::Arc;
use std::time::SystemTime;

use super::answer::{Asked, Known, Verdict, judge, media};
use super::ask::{Question, ask};
use super::route::Route;
use crate::store::Generation;
use crate::types::ByteRange;

/// What the home lane says about a version that another answer had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The home lane still has the version that is being fetched: only the other lane has another one.
    Unchanged,
    /// Twice the same new version: the content changed.
    Changed,
    /// Three different versions in three answers: the validator says nothing (HTTP-24), or nothing is at rest.
    Unsteady {
        /// Whether at least the length stayed.
        same_length: bool,
    },
    /// The home lane does not say.
    Unknown,
}

/// Asks for one byte, twice where the first answer is of a new version.
pub(super) async fn check(home: Arc<Route>, known: Arc<Known>) -> Finding {
    let Some(first) = version(&home).await else {
        return Finding::Unknown;
    };
    if is_same(&known, &first) {
        return Finding::Unchanged;
    }
    let Some(second) = version(&home).await else {
        return Finding::Unknown;
    };
    if is_same(&known, &second) {
        return Finding::Unchanged;
    }
    if first.generation == second.generation {
        return Finding::Changed;
    }
    let total = known.generation.total;
    let same_length = first.generation.total == total && second.generation.total == total;
    Finding::Unsteady { same_length }
}

/// The version the origin has now; one without validator counts as a version too.
async fn version(home: &Route) -> Option<Known> {
    let range = Some(ByteRange::new(0, 1));
    let question = Question {
        range,
        condition: None,
    };
    let answer = ask(home, &question).await.ok()?;
    let asked = Asked {
        range,
        conditional: false,
        known: None,
    };
    let media = media(&answer.head);
    let (total, validator) = match judge(asked, answer.status, &answer.head, SystemTime::now()) {
        Verdict::Accept { total, validator, .. } => (total, validator),
        Verdict::Whole {
            len: Some(len),
            validator,
            ..
        } => (len, validator),
        // Emptied.
        Verdict::Unsatisfied(Some(0)) => (0, None),
        _ => return None,
    };
    let generation = Generation { total, validator };
    Some(Known { generation, media })
}

fn is_same(known: &Known, seen: &Known) -> bool {
    let seen = &seen.generation;
    super::generation::same(&known.generation, seen.total, seen.validator.as_ref())
}
