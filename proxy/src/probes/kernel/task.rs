//! What programs are told so that they know whose task they run in.

use outrigger_probes::TaskFact;

use super::{
    facts::{Kernel, own_namespace},
    obstacle::Obstacle,
    user::Release,
};

/// The first kernel that gives programs the task they run for by its type.
const TASK: Release = Release { major: 5, minor: 11 };

/// Every fact that is an offset, and where it is to be found.
const FIELDS: [(TaskFact, &str, &[&str]); TaskFact::COUNT - 1] = [
    (TaskFact::Flags, "task_struct", &["flags"]),
    (TaskFact::Namespaces, "task_struct", &["nsproxy"]),
    (TaskFact::NetworkNamespace, "nsproxy", &["net_ns"]),
    (TaskFact::NamespaceNumber, "net", &["ns", "inum"]),
];

impl Kernel {
    /// The facts of tasks.
    ///
    /// # Errors
    /// The kernel is too old, or lacks a field.
    pub(in crate::probes) fn task(&self) -> Result<[u32; TaskFact::COUNT], Obstacle> {
        TASK.required()?;
        let mut facts = [0; TaskFact::COUNT];
        let offsets = self.offsets(FIELDS.map(|(_, structure, path)| (structure, path)))?;
        for ((fact, ..), offset) in FIELDS.iter().zip(offsets) {
            facts[*fact as usize] = offset;
        }
        facts[TaskFact::OwnNamespace as usize] = own_namespace()?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_of_a_task_but_the_own_namespace_has_a_place_in_the_kernel() {
        for (at, (fact, ..)) in FIELDS.iter().enumerate() {
            assert_eq!(*fact as usize, at, "in the order of the table");
        }
        assert_eq!(TaskFact::OwnNamespace as usize, FIELDS.len());
    }
}
