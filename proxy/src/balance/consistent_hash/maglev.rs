//! A table of endpoints in which each has its share almost exactly (Eisenbud and others, *Maglev: A
//! Fast and Reliable Software Network Load Balancer*, NSDI 2016, section 3.4).
//!
//! Each endpoint has an order of its own of all the places in the table, made from its identity.
//! They take turns, each taking the first place of its order that is still free, until the table is
//! full. With fewer endpoints nearly all places go to whom they went before. An endpoint of less
//! than the largest weight sits out as many turns as its weight says.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Sizes of tables. Primes, so that any step leads through all places. The smallest with a hundred
/// places for each endpoint is taken, so that shares are exact to about a percent.
const SIZES: [u32; 5] = [1_021, 4_093, 16_381, 65_537, 655_373];

/// The endpoint of each place.
#[derive(Debug)]
pub(super) struct Maglev {
    /// Empty without any weight.
    table: Box<[u32]>,
}

impl Maglev {
    /// The table of these endpoints, given as identity and weight. Their order does not matter.
    pub(super) fn new(members: &[(u64, u32)]) -> Self {
        let wanted = members.len().saturating_mul(100);
        let size = SIZES.into_iter().find(|&size| size as usize >= wanted);
        Self::with_size(size.unwrap_or(SIZES[SIZES.len() - 1]), members)
    }

    fn with_size(size: u32, members: &[(u64, u32)]) -> Self {
        let mut seats = Seat::all(size, members);
        let mut table = vec![FREE; size as usize];
        let mut free = if seats.is_empty() { 0 } else { table.len() };
        while free > 0 {
            for seat in &mut seats {
                if free > 0 && seat.has_turn() {
                    seat.take(&mut table);
                    free -= 1;
                }
            }
        }
        if seats.is_empty() {
            table.clear();
        }
        Self { table: table.into() }
    }

    /// The place of `key`, and those after it.
    pub(super) fn places(&self, key: u64) -> impl Iterator<Item = usize> {
        let first = ((u128::from(key) * self.table.len() as u128) >> 64) as usize;
        let (before, from) = self.table.split_at(first);
        from.iter().chain(before).map(|&i| i as usize)
    }
}

const FREE: u32 = u32::MAX;

/// An endpoint that is being seated.
struct Seat {
    index: u32,
    /// The next place of its order.
    next: u32,
    /// From one place of its order to the next.
    step: u32,
    /// What it gains in every round, of the largest weight.
    weight: u64,
    largest: u64,
    /// A turn costs the largest weight.
    gained: u64,
}

impl Seat {
    /// Those of a weight above zero, by identity.
    fn all(size: u32, members: &[(u64, u32)]) -> Vec<Self> {
        let mut members: Vec<_> = (0..).zip(members).filter(|(_, member)| member.1 > 0).collect();
        members.sort_unstable_by_key(|(_, member)| member.0);
        let largest = members.iter().map(|(_, member)| member.1).max().unwrap_or(1);
        let hash = |id: u64, seed| xxh3_64_with_seed(&id.to_le_bytes(), seed);
        let seat = |(index, member): (u32, &(u64, u32))| Self {
            index,
            next: (hash(member.0, 1) % u64::from(size)) as u32,
            step: (hash(member.0, 2) % u64::from(size - 1)) as u32 + 1,
            weight: member.1.into(),
            largest: largest.into(),
            gained: 0,
        };
        members.into_iter().map(seat).collect()
    }

    fn has_turn(&mut self) -> bool {
        self.gained += self.weight;
        let has_turn = self.gained >= self.largest;
        if has_turn {
            self.gained -= self.largest;
        }
        has_turn
    }

    /// Takes the first free place of its order. There must be one.
    fn take(&mut self, table: &mut [u32]) {
        while table[self.next as usize] != FREE {
            self.advance(table.len());
        }
        table[self.next as usize] = self.index;
        self.advance(table.len());
    }

    fn advance(&mut self, size: usize) {
        self.next = ((self.next as usize + self.step as usize) % size) as u32;
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn members(weights: &[u32]) -> Vec<(u64, u32)> {
        let id = |i: u64| xxh3_64(&i.to_le_bytes());
        (0..).map(id).zip(weights.iter().copied()).collect()
    }

    fn shares(maglev: &Maglev, members: usize) -> Vec<usize> {
        let mut shares = vec![0; members];
        for &i in &maglev.table {
            shares[i as usize] += 1;
        }
        shares
    }

    #[test]
    fn equal_weights_have_equal_shares_to_one_place() {
        for count in [1, 2, 3, 10, 11, 100, 1_000] {
            let shares = shares(&Maglev::new(&members(&vec![7; count])), count);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
    }

    #[test]
    fn shares_follow_weights_to_a_percent() {
        let weights = [1, 2, 3, 4, 0, 10];
        let maglev = Maglev::new(&members(&weights));
        let shares = shares(&maglev, weights.len());
        for (&share, &weight) in shares.iter().zip(&weights) {
            let wanted = f64::from(weight) / 20.0;
            let got = share as f64 / maglev.table.len() as f64;
            assert!((got - wanted).abs() < 0.01, "weight {weight}: {got}");
        }
        assert_eq!(shares[4], 0);
    }

    #[test]
    fn every_key_has_a_place_and_all_others_follow() {
        let maglev = Maglev::new(&members(&[1, 1, 1]));
        for key in [0, 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(maglev.places(key).count(), maglev.table.len());
        }
        assert_eq!(Maglev::new(&members(&[0, 0])).places(7).count(), 0);
        assert_eq!(Maglev::new(&[]).places(7).count(), 0);
    }

    #[test]
    fn places_are_the_same_from_every_proxy() {
        let mut members = members(&[1, 2, 1, 3, 1]);
        let of = |members: &[(u64, u32)]| {
            let maglev = Maglev::new(members);
            maglev.table.iter().map(|&i| members[i as usize].0).collect::<Vec<_>>()
        };
        let table = of(&members);
        members.reverse();
        assert_eq!(of(&members), table);
        // Pinned: a release that places keys elsewhere empties every cache behind it.
        let first: Vec<u8> = table[..8].iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(xxh3_64(&first), 13_477_775_870_678_945_508);
    }
}
