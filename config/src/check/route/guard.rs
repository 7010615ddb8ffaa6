//! What happens beside a request: a guard needs two arms that can be compared, and a mirror a backend
//! that the requests do not go to anyway.

use crate::check::{Checker, on};
use crate::read::nearest;
use crate::read::tree::Node;
use crate::schema::{self, File};
use crate::validated::{Action, Arm, Guard, Mirror, Steps};

impl Checker<'_> {
    pub(super) fn guard(
        &mut self,
        route_node: &Node,
        guard: &schema::Guard,
        action: Option<&Action>,
    ) -> Option<Guard> {
        let node = route_node.at("guard");
        let steps = guard.steps.as_ref().map(|steps| self.steps(node.at("steps"), steps));
        if guard.arm.is_empty() {
            self.missing(node, "arm");
            return None;
        }
        let arms = self.guarded_split(route_node, action?)?;
        let arm = self.arm(node.at("arm"), &guard.arm, arms);
        let against = self.against(node, guard, arm, arms);
        let (arm, against) = (arm?, against?);
        if arm == against {
            self.wrong(node.at("against"), "is the guarded arm itself", None);
        }
        self.comparable(node, (&arms[arm], guard.steps.is_some()), &arms[against]);
        Some(Guard {
            arm,
            arm_name: arms[arm].name.clone(),
            against,
            against_name: arms[against].name.clone(),
            errors: guard.errors.0,
            first_byte: on(&guard.first_byte).map(|share| share.0),
            gap: on(&guard.gap).map(|share| share.0),
            false_alarm: guard.false_alarm.0,
            steps,
        })
    }

    /// The arms; `None` where there are not two, or where one has a problem of its own.
    fn guarded_split<'a>(&mut self, route_node: &Node, action: &'a Action) -> Option<&'a [Arm]> {
        let written = route_node.get("split").map_or(0, |split| split.keys().count());
        if written < 2 {
            let message = "compares two arms, but the route has no `split` with two";
            self.wrong_key(route_node.at("guard"), message, None);
            return None;
        }
        match action {
            Action::Split(arms) if arms.len() == written => Some(arms),
            _ => None,
        }
    }

    /// The place of an arm.
    fn arm(&mut self, node: &Node, name: &str, arms: &[Arm]) -> Option<usize> {
        let place = arms.iter().position(|arm| arm.name == name);
        if place.is_none() {
            let mut known: Vec<_> = arms.iter().map(|arm| arm.name.as_str()).collect();
            known.sort_unstable();
            let message = format!("\"{name}\" is no arm of the split");
            self.wrong(node, message, nearest(name, &known));
        }
        place
    }

    /// What the guarded arm is compared with.
    fn against(
        &mut self,
        node: &Node,
        guard: &schema::Guard,
        arm: Option<usize>,
        arms: &[Arm],
    ) -> Option<usize> {
        if let Some(name) = &guard.against {
            return self.arm(node.at("against"), name, arms);
        }
        let arm = arm?;
        if arms.len() == 2 {
            return Some(1 - arm);
        }
        let others = arms.iter().map(|arm| arm.name.as_str()).filter(|name| *name != guard.arm);
        let help = format!("one of {}", others.collect::<Vec<_>>().join(", "));
        let message = "needs `against`: the split has more than two arms";
        self.wrong(node, message, Some(help));
        None
    }

    /// Both arms must get traffic.
    fn comparable(&mut self, node: &Node, (arm, has_steps): (&Arm, bool), against: &Arm) {
        let idle =
            |arm: &Arm| format!("\"{}\" has weight 0: there is nothing to compare", arm.name);
        if arm.weight == 0 && !has_steps {
            let help = "give it a weight or `steps`".to_owned();
            self.wrong(node.at("arm"), idle(arm), Some(help));
        }
        if against.weight == 0 {
            self.wrong(node.at("against"), idle(against), Some("give it a weight".to_owned()));
        }
    }

    fn steps(&mut self, node: &Node, steps: &schema::Steps) -> Steps {
        let at = node.at("weights");
        let weights: Vec<_> = steps.weights.iter().map(|weight| weight.0).collect();
        if weights.is_empty() {
            self.wrong(at, "no weights: at least one is needed", None);
        }
        let items = self.document.items(at, weights.len());
        for (item, pair) in items.into_iter().skip(1).zip(weights.windows(2)) {
            if pair[1] <= pair[0] {
                let message = format!("{} does not go up from {}", pair[1], pair[0]);
                self.wrong(item, message, None);
            }
        }
        Steps { weights, every: steps.every.0, requests: steps.requests.0 }
    }

    pub(super) fn mirror(
        &mut self,
        node: &Node,
        mirror: &schema::Mirror,
        action: Option<&Action>,
        file: &File,
    ) -> Option<Mirror> {
        if mirror.backend.is_empty() {
            self.missing(node, "backend");
            return None;
        }
        let at = node.at("backend");
        let backend = self.backend_index(at, &mirror.backend, file)?;
        if let Some(Action::Split(arms)) = action
            && arms.iter().any(|arm| arm.backend == backend)
        {
            self.warn(at, "is an arm of the route: it gets requests twice");
        }
        Some(Mirror {
            backend,
            name: mirror.backend.clone(),
            share: mirror.share.0,
            max_in_flight: mirror.max_in_flight.0 as usize,
            body: mirror.body.0,
            timeout: mirror.timeout.0,
        })
    }
}
