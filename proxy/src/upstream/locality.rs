//! How far away an endpoint is, in work: by how much less loaded it must be than one nearby before it is chosen.
//!
//! Distance is one more thing that a balancing score adds, in thousandths of a running request. So the own pod's engine
//! and the own zone are preferred as long as their queue is not longer than another one's plus the distance; beyond
//! that the surplus, and only the surplus, goes to where it is shorter. Nothing flips from all to nothing.

use outrigger_config::validated as config;

use crate::{balance::Cost, telemetry::metrics::Nearness};

/// The variable that tells the zone where the configuration does not: the same file then serves every zone.
pub const ZONE_VARIABLE: &str = "OUTRIGGER_ZONE";

/// Where we are, and what going elsewhere costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Locality {
    zone: Option<String>,
    hop: u64,
    far: u64,
}

impl Locality {
    /// As configured, in the zone that `default_zone` names when the configuration names none.
    pub fn new(settings: &config::Locality, default_zone: Option<String>) -> Self {
        let work = |requests: f64| (requests * Cost::REQUEST as f64) as u64;
        let zone = settings.zone.clone().or(default_zone).filter(|zone| !zone.is_empty());
        Locality { zone, hop: work(settings.hop), far: work(settings.far) }
    }

    /// How near an endpoint is. One whose zone nobody knows, or that is asked for from nowhere in particular, is near.
    pub fn nearness(&self, local: bool, zone: Option<&str>) -> Nearness {
        match (local, &self.zone, zone) {
            (true, _, _) => Nearness::Local,
            (false, Some(own), Some(zone)) if own != zone => Nearness::Far,
            (false, _, _) => Nearness::Near,
        }
    }

    /// The extra work of going there, where there is (`has_local`) an engine in the own pod or not.
    pub fn distance(&self, nearness: Nearness, has_local: bool) -> u64 {
        match nearness {
            Nearness::Local => 0,
            Nearness::Near if has_local => self.hop,
            Nearness::Near => 0,
            Nearness::Far => self.far,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(zone: Option<&str>) -> Locality {
        let settings = config::Locality { zone: zone.map(str::to_owned), hop: 1.5, far: 4.0 };
        Locality::new(&settings, Some("from-the-environment".to_owned()))
    }

    #[test]
    fn the_configured_zone_comes_before_that_of_the_environment() {
        assert_eq!(locality(Some("a")).nearness(false, Some("b")), Nearness::Far);
        assert_eq!(locality(None).nearness(false, Some("from-the-environment")), Nearness::Near);
    }

    #[test]
    fn what_is_not_known_is_near() {
        assert_eq!(locality(Some("a")).nearness(false, None), Nearness::Near);
        let settings = config::Locality { zone: None, hop: 1.0, far: 4.0 };
        let nowhere = Locality::new(&settings, None);
        assert_eq!(nowhere.nearness(false, Some("b")), Nearness::Near);
    }

    #[test]
    fn a_hop_counts_only_where_one_could_stay() {
        let locality = locality(Some("a"));
        assert_eq!(locality.distance(Nearness::Near, true), 1_500);
        assert_eq!(locality.distance(Nearness::Near, false), 0);
        assert_eq!(locality.distance(Nearness::Far, false), 4_000);
        assert_eq!(locality.distance(Nearness::Local, true), 0);
    }
}
