use super::*;
use proptest::prelude::*;

#[test]
fn clients_spread_and_move_only_with_their_endpoint() {
    let endpoint = |i: u8| IpAddr::from([10, 0, 1, i]);
    let at = |c: u16, without: Option<u8>| {
        let list: Vec<u8> = (0..10).filter(|i| Some(*i) != without).collect();
        let [hi, lo] = c.to_be_bytes();
        rendezvous(IpAddr::from([10, 9, hi, lo]), list.iter().map(|i| endpoint(*i))).map(|i| list[i])
    };
    let mut counts = [0; 10];
    for client in 0..1000 {
        let chosen = at(client, None).expect("there are ten");
        counts[usize::from(chosen)] += 1;
        for gone in 0..10 {
            if gone != chosen {
                assert_eq!(at(client, Some(gone)), Some(chosen));
            }
        }
    }
    assert!(counts.iter().all(|n| (50..=160).contains(n)), "{counts:?}");
    assert_eq!(rendezvous(endpoint(1), std::iter::empty()), None);
}

fn endpoints(count: usize) -> Vec<SocketAddr> {
    (0..count).map(|i| SocketAddr::from(([10, 1, (i >> 8) as u8, i as u8], 8080))).collect()
}

fn keys(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|k| hash64(&k.to_le_bytes(), 1))
}

#[test]
fn every_bit_and_the_length_matter() {
    let mut seen = std::collections::HashSet::new();
    for len in 0..40 {
        assert!(seen.insert(hash64(&vec![0; len], 0)));
        for bit in 0..len * 8 {
            let mut bytes = vec![0; len];
            bytes[bit / 8] |= 1 << (bit % 8);
            assert!(seen.insert(hash64(&bytes, 0)));
        }
    }
}

#[test]
fn a_ring_is_spread_within_half() {
    for count in [2, 10, 50, 200] {
        let (ring, mut counts) = (Ring::new(&endpoints(count)), vec![0u32; count]);
        let each = 2000;
        keys(each * count as u64).for_each(|k| counts[ring.lookup(k).expect("some")] += 1);
        let shares: Vec<f64> = counts.iter().map(|n| f64::from(*n) / each as f64).collect();
        assert!(shares.iter().all(|s| (0.6..1.5).contains(s)), "{count}: {shares:?}");
    }
}

#[test]
fn a_table_is_even() {
    for count in [1, 2, 10, 40, 41, 300] {
        let table = Maglev::new(&endpoints(count));
        let mut counts = vec![0u32; count];
        table.places().for_each(|i| counts[i] += 1);
        let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
        assert!(most - least <= 1 && *least >= 100, "{least} to {most}");
    }
    assert_eq!(Maglev::new(&[]).lookup(7), None);
    assert_eq!(Maglev::new(&[]).walk(7).next(), None);
    assert_eq!(Ring::new(&[]).lookup(7), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn few_keys_move_when_an_endpoint_goes(count in 2usize..60, gone in 0usize..60, seed in any::<u64>()) {
        let all = endpoints(count);
        let gone = all[gone % count];
        let rest: Vec<SocketAddr> = all.iter().copied().filter(|e| *e != gone).collect();
        let (ring, ring_after, table, table_after) = (Ring::new(&all), Ring::new(&rest), Maglev::with_size(&all, 65_537), Maglev::with_size(&rest, 65_537));
        let (mut moved, mut moved_table, keys) = (0, 0, 4000u32);
        for k in 0..keys {
            let k = hash64(&k.to_le_bytes(), seed);
            let (before, after) = (all[ring.lookup(k).expect("some")], rest[ring_after.lookup(k).expect("some")]);
            moved += u32::from(before != after);
            // On a ring, nobody else's.
            prop_assert!(before == after || before == gone);
            let (before, after) = (all[table.lookup(k).expect("some")], rest[table_after.lookup(k).expect("some")]);
            moved_table += u32::from(before != after);
        }
        let share = |moved| f64::from(moved) / f64::from(keys);
        prop_assert!(share(moved) <= 1.0 / count as f64 + 0.1, "{} of {}", moved, keys);
        prop_assert!(share(moved_table) <= 1.0 / count as f64 + 0.1, "{} of {}", moved_table, keys);
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter(count in 1usize..60, turn in 0usize..60, seed in any::<u64>()) {
        let all = endpoints(count);
        let mut other = all.clone();
        other.rotate_left(turn % count);
        other.reverse();
        let (a, b) = (Ring::new(&all), Ring::new(&other));
        let (c, d) = (Maglev::new(&all), Maglev::new(&other));
        for k in 0..300u32 {
            let k = hash64(&k.to_le_bytes(), seed);
            prop_assert_eq!(a.lookup(k).map(|i| all[i]), b.lookup(k).map(|i| other[i]));
            prop_assert_eq!(c.lookup(k).map(|i| all[i]), d.lookup(k).map(|i| other[i]));
        }
    }
}
