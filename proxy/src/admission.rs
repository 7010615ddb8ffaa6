//! Whether a request may enter now, waits, or is turned away.
//!
//! Three questions, in this order, each its own pure core: is it too much for whom it is from ([`rate`]), is there a
//! place ([`limiter`] says how many there are), and if not, may it wait for one and when is its turn ([`queue`]).
//! [`rules`] puts the first together for a route; [`gate`] the other two for everyone who asks at once: without a lock
//! while there is a place. A gate stands in front of a route, of a backend, or of both; `phase/enter.rs` takes a request
//! through.
//!
//! `ADMISSION.md` beside this crate has the formulas and what was measured.

pub mod gate;
pub mod limiter;
pub mod queue;
pub mod rate;
pub mod rules;

use std::time::{Duration, Instant};

use gate::Permit;
use limiter::{Sample, Span};
use queue::Ticket;
use rate::Standings;
use rules::Bill;

use crate::{balance::Cost, outcome::Outcome, stream::Summary};

/// What a request holds while it is in; dropping it gives its places back.
#[derive(Default)]
pub struct Admitted {
    /// Its place in front of the backend, given back before that of the route.
    pub backend: Option<Permit>,
    /// Its place in front of the route.
    pub route: Option<Permit>,
    /// Its class; 0 is the highest.
    pub class: usize,
    /// Its place in the queue of the backend, if it had to wait there.
    pub seat: Option<Ticket>,
    /// What it was charged.
    pub bill: Option<Box<Bill>>,
    /// How the allowances stood when it was refused.
    pub refused: Option<Box<Standings>>,
}

impl Admitted {
    /// How its allowances stand, where it has any.
    pub fn standing(&self) -> Option<Standings> {
        self.refused.as_deref().copied().or_else(|| self.bill.as_ref().map(|bill| bill.standing()))
    }

    /// A stream began so long after the request was sent, whose prompt has so many bytes.
    pub fn stream_began(&self, after: Duration, prompt_bytes: u64) {
        let tokens = Cost::tokens_of(prompt_bytes);
        self.teach(Sample { span: Span::FirstByte, tokens, took: after, in_flight: 0 });
    }

    /// An answer came as a whole so long after the request was sent.
    pub fn whole_answer(&self, took: Duration, prompt_bytes: u64, summary: &Summary) {
        let tokens = summary.tokens_out.filter(|tokens| *tokens > 0);
        let tokens = tokens.unwrap_or_else(|| Cost::tokens_of(prompt_bytes));
        self.teach(Sample { span: Span::Whole, tokens, took, in_flight: 0 });
    }

    fn teach(&self, sample: Sample) {
        self.permits().for_each(|permit| permit.answered(sample));
    }

    fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.route.iter().chain(&self.backend).filter(|permit| permit.adapts())
    }

    /// The request has ended: gives its places back, and says so where that was because of too many requests.
    pub fn leave(&mut self, outcome: Outcome, status: Option<u16>) {
        let too_slow = matches!(outcome, Outcome::FirstByteTimeout | Outcome::Stalled);
        let too_busy = outcome.is_of_upstream() && matches!(status, Some(429 | 503));
        if too_slow || too_busy {
            self.permits().for_each(Permit::overloaded);
        }
        (self.backend, self.route) = (None, None);
    }

    /// Settles what it was charged; `None` where no model has worked on it.
    pub fn settle(&mut self, answered: Option<&Summary>, now: Instant) {
        if let Some(bill) = self.bill.take() {
            bill.settle(answered.map(|summary| (summary.tokens_in, summary.tokens_out)), now);
        }
    }
}
