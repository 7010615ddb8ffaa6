//! A second attempt while the first one is open: it needs what `retry` keeps and allows.

use crate::check::{Checker, on};
use crate::read::tree::Node;
use crate::schema::{self, Switch};
use crate::units::format_duration;
use crate::validated::{Deadline, Hedge, HedgeAfter};

impl Checker<'_> {
    pub(super) fn hedge(
        &mut self,
        route_node: &Node,
        route: &schema::Route,
        deadline: &Deadline,
    ) -> Option<Hedge> {
        let hedge = on(&route.hedge)?;
        let node = route_node.at("hedge");
        self.fits_retry(node, route_node, &route.retry);
        let after = hedge.after.0;
        let first_byte = deadline.first_byte.longest();
        if let (HedgeAfter::Fixed(after), Some(limit)) = (after, first_byte)
            && after >= limit
        {
            let limit = format_duration(limit);
            let message = format!("has no effect: the first-byte deadline ({limit}) is not later");
            self.warn(node.at("after"), message);
        }
        Some(Hedge { after, budget: hedge.budget.0, max: hedge.max.0 })
    }

    fn fits_retry(&mut self, node: &Node, route: &Node, retry: &Switch<schema::Retry>) {
        match retry {
            Switch::Off => {
                let help = "`retry: { attempts: 2 }` allows a hedge or a retry".to_owned();
                let message = "needs `retry`, whose attempts, buffer and budget it shares";
                self.wrong(node, message, Some(help));
            }
            Switch::On(retry) if retry.attempts.0 < 2 => {
                let at = route.at("retry").at("attempts");
                self.wrong(at, "leaves no attempt for a `hedge`", None);
            }
            Switch::On(_) => {}
        }
    }
}
