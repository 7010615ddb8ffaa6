//! A look at the hash of purges: what is asked of Redis, in which order, until both sides know the same.
//!
//! It may end at any step and begin anew, and others may do anything between two of them: each step is one command, and
//! those that change something say in which epoch that is meant. Two looks of one sidecar must follow each other.

use arc_swap::ArcSwap;

use super::{
    super::link::Trouble,
    {Hash, Marks, Merged, NONE, Purge, Seen, Written},
};
use crate::telemetry::metrics::RedisFailure;

/// Beginnings until it is given up for now. Each but the first needs another sidecar that changed the epoch meanwhile.
const TRIES: usize = 8;

/// What can be asked about the hash; each is done as a whole or not at all.
pub(in super::super) trait Ledger {
    /// Up to where it goes.
    fn seen(&mut self) -> impl Future<Output = Result<Seen, Trouble>> + Send;
    /// All of it.
    fn all(&mut self) -> impl Future<Output = Result<Hash, Trouble>> + Send;
    /// Begins the epoch `to`, if it has that of `from` still; its marks are later than the latest of `from`.
    fn renew(&mut self, from: Seen, to: u64) -> impl Future<Output = Result<(), Trouble>> + Send;
    /// Puts one new mark, later than the latest of `known`, beside all of these, if its epoch is that of `known`. What has
    /// another identity there gets the `fresh` one: else those who know the one given, but not the one there, would miss that.
    fn purge(
        &mut self,
        known: Seen,
        purges: &[(Purge, u64)],
        fresh: u64,
    ) -> impl Future<Output = Result<Option<Written>, Trouble>> + Send;
}

/// Tells Redis what is to be told, takes up what others have purged, and gives it to `purged`. `draw` gives random numbers.
/// If Redis is well and would not be told, that is given: what was to be told goes on holding here.
///
/// # Errors
/// What went wrong; less is known then than there is.
pub(in super::super) async fn look(
    marks: &ArcSwap<Marks>,
    ledger: &mut impl Ledger,
    purged: &impl Fn(&Purge),
    mut draw: impl FnMut() -> u64,
) -> Result<Option<Trouble>, Trouble> {
    for _ in 0..TRIES {
        let seen = ledger.seen().await?;
        if !marks.load().are_those_of(seen) {
            let hash = ledger.all().await?;
            match change(marks, |marks| marks.merge(&hash)) {
                Merged::News(news) => news.iter().for_each(purged),
                Merged::Lost => {
                    let (from, known) = (hash.seen.epoch, marks.load().seen());
                    let from = Seen { epoch: from, latest: known.latest };
                    match ledger.renew(from, draw().max(NONE + 1)).await {
                        // What is known here goes on holding, but something must be known.
                        Err(no) if no.is_answer() && known.epoch != NONE => return Ok(Some(no)),
                        renewed => renewed?,
                    }
                    continue;
                }
            }
        }
        let (known, pending) = (marks.load().seen(), marks.load().pending());
        if pending.is_empty() {
            return Ok(None);
        }
        match ledger.purge(known, &pending, draw()).await {
            Ok(None) => {}
            Ok(Some(written)) => {
                let news = change(marks, |marks| marks.settle(known.epoch, &pending, &written));
                news.iter().for_each(purged);
                return Ok(None);
            }
            Err(no) if no.is_answer() => return Ok(Some(no)),
            Err(trouble) => return Err(trouble),
        }
    }
    let reason = "its purges change faster than they can be read".to_owned();
    Err(Trouble { kind: RedisFailure::Unready, reason })
}

/// Changes the marks, perhaps trying more than once.
pub(in super::super) fn change<T>(
    marks: &ArcSwap<Marks>,
    mut change: impl FnMut(&mut Marks) -> T,
) -> T {
    let mut result = None;
    marks.rcu(|marks| {
        let mut marks = Marks::clone(marks);
        result = Some(change(&mut marks));
        marks
    });
    result.expect("a change is tried at least once")
}
