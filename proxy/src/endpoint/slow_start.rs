//! How much of its weight an endpoint has while it is new: an engine that has just come up compiles kernels and fills
//! caches, and a full share of the traffic would meet all of that at once.

use std::time::Duration;

use outrigger_config::validated::SlowStart;

/// The share of its weight at this age: `max(floor, (age / window)^(1 / aggression))`, at most 1.
///
/// The form is Envoy's (`common/v3` slow start config, there with a floor of 10 %); an aggression above 1 gives more
/// weight early.
pub fn share(settings: &SlowStart, age: Duration) -> f64 {
    if age >= settings.window {
        return 1.0;
    }
    let time = age.as_secs_f64() / settings.window.as_secs_f64();
    time.powf(1.0 / settings.aggression).max(settings.floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64, aggression: f64) -> f64 {
        let settings = SlowStart { window: Duration::from_secs(100), floor: 0.1, aggression };
        share(&settings, Duration::from_secs(seconds))
    }

    #[test]
    fn grows_from_the_floor_to_the_whole() {
        assert_eq!([0, 5, 10, 50, 100, 200].map(|s| after(s, 1.0)), [0.1, 0.1, 0.1, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn aggression_bends_the_line() {
        assert!(after(50, 2.0) > 0.7, "early");
        assert_eq!(after(50, 0.5), 0.25, "late");
    }
}
