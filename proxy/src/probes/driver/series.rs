//! Which label values a call is counted under.
//!
//! Decides: the first so many pairs of device and command have series of their own for as long as the proxy runs, and all
//! that come later share one: commands are numbers that an application makes up, and a page of metrics must stay a page.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_probes::{Histogram, What};

use super::devices::Devices;
use crate::telemetry::metrics::OTHER;

/// Pairs of device and command that have a series.
const SERIES_MOST: usize = 256;

/// Device and command.
type Labels = [String; 2];

/// The label values that were given.
#[derive(Debug, Default)]
pub(super) struct Series {
    known: BTreeMap<u64, Labels>,
    given: BTreeSet<Labels>,
}

impl Series {
    /// What was counted in the kernel, by label values.
    pub(super) fn fold(
        &mut self,
        devices: &Devices,
        counts: impl IntoIterator<Item = (u64, Histogram)>,
    ) -> BTreeMap<Labels, Histogram> {
        let mut folded = BTreeMap::<Labels, Histogram>::new();
        for (what, histogram) in counts {
            folded.entry(self.labels(devices, what)).or_default().merge(&histogram);
        }
        folded
    }

    fn labels(&mut self, devices: &Devices, what: u64) -> Labels {
        if let Some(labels) = self.known.get(&what) {
            return labels.clone();
        }
        let mut labels = labels(devices, what);
        if !self.given.contains(&labels) && self.given.len() >= SERIES_MOST {
            labels = [OTHER.to_owned(), OTHER.to_owned()];
        } else {
            self.given.insert(labels.clone());
        }
        self.known.insert(what, labels.clone());
        labels
    }
}

/// What was called, in words.
pub(super) fn labels(devices: &Devices, what: u64) -> Labels {
    let What { device, command } = What::from_word(what);
    let (name, interface) = devices.name(device);
    [name, interface.name(command).into_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(count: u64) -> Histogram {
        Histogram { count, ..Histogram::default() }
    }

    fn what(command: u32) -> u64 {
        What { device: 1, command }.to_word()
    }

    #[test]
    fn sizes_of_arguments_are_one_series() {
        let folded = Series::default().fold(
            &Devices::default(),
            [(what(0xc020_462b), calls(2)), (what(0xc030_462b), calls(3))],
        );
        let labels = ["unknown".to_owned(), "0x46/0x2b".to_owned()];
        assert_eq!(folded, BTreeMap::from([(labels, calls(5))]));
    }

    #[test]
    fn series_have_an_end_and_stay_what_they_are() {
        let (mut series, devices) = (Series::default(), Devices::default());
        let all = || (0..300).map(|command| (what(command), calls(1)));
        series.fold(&devices, all().take(1));
        // The kernel lists them in whichever order.
        let folded = series.fold(&devices, all().collect::<Vec<_>>().into_iter().rev());
        assert_eq!(folded.len(), SERIES_MOST + 1);
        let other = [OTHER.to_owned(), OTHER.to_owned()];
        assert_eq!(folded[&other].count, 300 - SERIES_MOST as u64);
        assert!(folded.contains_key(&["unknown".to_owned(), "0x00/0x00".to_owned()]));
        assert_eq!(series.fold(&devices, all()), folded);
    }
}
