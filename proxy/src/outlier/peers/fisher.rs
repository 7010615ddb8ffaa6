//! Fisher's exact test of a table of two by two, one-sided.

/// So many of all are bad, here and among the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) own_bad: u64,
    /// At least `own_bad`.
    pub(super) own_all: u64,
    pub(super) peers_bad: u64,
    /// At least `peers_bad`.
    pub(super) peers_all: u64,
}

impl Table {
    pub(super) fn own_share(&self) -> f64 {
        self.own_bad as f64 / self.own_all as f64
    }

    pub(super) fn peers_share(&self) -> f64 {
        self.peers_bad as f64 / self.peers_all as f64
    }

    /// How likely it is that of all that is bad so much or more is found here, when it is dealt out
    /// blindly: the upper tail of the hypergeometric distribution. 0.0 to 1.0, and 1.0 when it is
    /// no worse here than there; no assumption is made about how often something is bad.
    pub(super) fn chance(&self) -> f64 {
        if self.own_bad * self.peers_all <= self.peers_bad * self.own_all {
            return 1.0;
        }
        let bad = self.own_bad + self.peers_bad;
        let most = bad.min(self.own_all);
        let mut term = self.probability();
        let mut tail = term;
        for here in self.own_bad..most {
            term *= self.ratio(here, bad);
            tail += term;
            if term <= tail * 1e-12 {
                break;
            }
        }
        tail.min(1.0)
    }

    /// Of exactly this table: C(own, own bad) C(peers, peers bad) / C(all, bad).
    fn probability(&self) -> f64 {
        let all = ln_choose(self.own_all + self.peers_all, self.own_bad + self.peers_bad);
        let here = ln_choose(self.own_all, self.own_bad);
        let there = ln_choose(self.peers_all, self.peers_bad);
        (here + there - all).exp()
    }

    /// By how much one bad more than `here` is less likely.
    fn ratio(&self, here: u64, bad: u64) -> f64 {
        let there = bad - here;
        let more = (self.own_all - here) as f64 * there as f64;
        more / ((here + 1) as f64 * (self.peers_all - there + 1) as f64)
    }
}

/// ln C(n, k).
fn ln_choose(n: u64, k: u64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// ln n!: exact for small n, else Stirling's series, which errs by less than 10⁻¹² from 16 on.
fn ln_factorial(n: u64) -> f64 {
    if n < 16 {
        return (1..=n).map(|i| i as f64).product::<f64>().ln();
    }
    let n = n as f64;
    let series = 1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3)) + 1.0 / (1260.0 * n.powi(5));
    n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(own_bad: u64, own_all: u64, peers_bad: u64, peers_all: u64) -> Table {
        Table { own_bad, own_all, peers_bad, peers_all }
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} instead of {expected}");
    }

    /// By hand: C(4, 3) C(4, 1) / C(8, 4) + C(4, 4) C(4, 0) / C(8, 4) = 17 / 70, the table of
    /// Fisher's lady who tastes tea.
    #[test]
    fn the_lady_tasting_tea() {
        close(table(3, 4, 1, 4).chance(), 17.0 / 70.0);
        close(table(4, 4, 0, 4).chance(), 1.0 / 70.0);
    }

    #[test]
    fn the_whole_of_the_tail_is_certain() {
        close(table(0, 20, 6, 40).chance(), 1.0);
        close(table(0, 20, 0, 40).chance(), 1.0);
        close(table(20, 20, 40, 40).chance(), 1.0);
    }

    /// C(20, 6) / C(60, 6) = 38,760 / 50,063,860.
    #[test]
    fn all_the_failures_at_one_of_three() {
        close(table(6, 20, 0, 40).chance(), 38_760.0 / 50_063_860.0);
    }

    #[test]
    fn large_numbers_neither_overflow_nor_vanish() {
        let even = table(50_001, 1_000_000, 100_000, 2_000_000).chance();
        assert!((0.49..0.51).contains(&even), "{even}");
        assert!(table(60_000, 1_000_000, 100_000, 2_000_000).chance() < 1e-100);
        close(ln_factorial(16), ln_factorial(15) + 16_f64.ln());
        close(ln_factorial(1_000_000), 12_815_518.384_658_16);
    }
}
