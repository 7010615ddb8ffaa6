//! The least of all that is known: counted load, cached prompts, reports, speed and distance. The
//! default.
//!
//! It needs no setting, since a signal that nobody sends leaves all endpoints alike. The terms are
//! in [`score`](super::score).

use rand::Rng;

use super::Candidates;
use super::affinity::Affinity;
use super::choose::Looked;
use super::score::Scorer;

/// The endpoint of the least score; of many, the least of a few and those that have computed a part
/// of the prompt.
pub(super) fn pick(
    candidates: &impl Candidates,
    affinity: &Affinity,
    rng: &mut impl Rng,
) -> Option<usize> {
    let named = affinity.of_prompt(&candidates.ask().prefix, candidates);
    let looked = Looked::at(candidates, rng, &named);
    let scorer = Scorer::new(candidates, &named, &looked);
    looked.least(rng, |i| scorer.score(i))
}
