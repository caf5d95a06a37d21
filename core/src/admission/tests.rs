use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn small() -> Arc<Door<u32>> {
    Door::new(Limits::quarter(16))
}

/// Lets in as many as come in at `now`, all from one source; their names begin at `first`.
fn crowd(door: &Arc<Door<u32>>, from: IpAddr, now: u64, first: u32, count: u32) -> Vec<Guest<u32>> {
    (first..first + count).filter_map(|name| door.admit(from, now, name).ok()).map(|a| a.guest).collect()
}

/// Whether nothing is left of anybody who was inside.
fn is_empty<E>(door: &Door<E>) -> bool {
    let state = door.state();
    state.sources.is_empty() && state.waiting.is_empty() && state.sharing.is_empty() && state.guests.is_empty()
}

#[test]
fn an_ipv6_network_and_an_ipv4_address_are_one_source_each() {
    let same = |a: &str, b: &str| source(a.parse().expect("an address")) == source(b.parse().expect("an address"));
    assert!(same("fd00:0:0:1::1", "fd00:0:0:1:ffff::2"));
    assert!(!same("fd00:0:0:1::1", "fd00:0:0:2::1"));
    assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
    assert!(!same("10.0.0.1", "10.0.0.2"));
}

#[test]
fn one_source_has_its_share_and_leaves_the_rest() {
    let door = small();
    let greedy = crowd(&door, ip(1), 0, 0, 100);
    assert_eq!(greedy.len(), 4);
    let refused = door.admit(ip(1), 0, 0).expect_err("it has its share");
    assert_eq!(refused.why, Shed::Source);
    let others: Vec<_> = (2..14).filter_map(|i| door.admit(ip(i), 0, 0).ok()).collect();
    assert_eq!(others.len(), 12, "there is room for everybody else");
    assert!(others.iter().all(|a| a.gives_way.is_none()));
    drop((greedy, others));
    assert!(is_empty(&door));
}

#[test]
fn a_source_with_its_share_loses_what_waited_too_long_and_never_what_is_served() {
    let door = small();
    let guests = crowd(&door, ip(1), 0, 0, 4);
    assert!(door.admit(ip(1), PATIENCE - 1, 9).is_err(), "who comes at once does not throw each other out");
    guests[0].is_served();
    let next = door.admit(ip(1), PATIENCE, 9).expect("a slow one gives way");
    assert_eq!(next.gives_way, Some(1), "the oldest that is not served");
    for guest in &guests[2..] {
        guest.is_served();
    }
    next.guest.is_served();
    assert!(door.admit(ip(1), 9 * SECOND, 10).is_err());
    guests[2].waits(10 * SECOND);
    assert!(door.admit(ip(1), 10 * SECOND, 10).is_err());
    assert_eq!(door.admit(ip(1), 11 * SECOND, 10).expect("it waited").gives_way, Some(2));
    assert_eq!(door.counts().evicted, 2);
}

#[test]
fn when_it_is_full_the_source_with_most_gives_way_to_one_with_less() {
    let door = small();
    let guests: Vec<_> = (0..4).map(|i| crowd(&door, ip(i), u64::from(i), u32::from(i) * 10, 4)).collect();
    let next = door.admit(ip(9), 5, 99).expect("a crowd gives way at once");
    assert_eq!(next.gives_way, Some(0), "of those with most, the first; of its own, the oldest");
    assert_eq!(door.counts().open, 16);
    // The next source with most, and so on; until a crowd is none.
    let more: Vec<_> = (10..30).filter_map(|i| door.admit(ip(i), 5, 99).ok()).collect();
    assert_eq!(more.len(), 11, "each of the four keeps one");
    assert_eq!(door.admit(ip(40), 5, 99).expect_err("nobody has notably more").why, Shed::Total);
    drop((guests, next, more));
    assert_eq!(door.counts().open, 0);
}

#[test]
fn a_single_honest_source_is_held_up_by_no_crowd() {
    let door: Arc<Door<u32>> = Door::new(Limits::all_but_a_quarter(8));
    let api_server = crowd(&door, ip(1), 0, 0, 2);
    let crowd = crowd(&door, ip(2), 1, 10, 100);
    assert_eq!(crowd.len(), 6);
    let third = door.admit(ip(1), 2, 3).expect("there is always room for it");
    assert_eq!(third.gives_way, Some(10));
    let fourth = door.admit(ip(1), 2, 4).expect("there is always room for it");
    assert_eq!(fourth.gives_way, Some(11));
    drop(api_server);
}

#[test]
fn those_that_wait_have_a_limit_of_their_own() {
    let limits = Limits { most: 100, most_of_one: 50, waiting: 8, waiting_of_one: 2 };
    let door: Arc<Door<u32>> = Door::new(limits);
    let mut served = Vec::new();
    for name in 0..50 {
        let admitted = door.admit(ip(1), 0, name).expect("one waits at a time");
        admitted.guest.is_served();
        served.push(admitted.guest);
    }
    assert_eq!(door.admit(ip(1), 0, 0).expect_err("it has half").why, Shed::Source);
    let waiting: Vec<_> = (2..9).map(|i| crowd(&door, ip(i), 0, 0, 9)).collect();
    assert_eq!(waiting.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 1, 1, 1]);
}

#[test]
fn those_that_stay_for_ever_share_with_who_has_less() {
    let limits = Limits { most: 8, most_of_one: 4, waiting: 4, waiting_of_one: 2 };
    let door: Arc<Door<u32>> = Door::new(limits);
    let stay = |from, first| -> Vec<_> {
        (first..first + 4)
            .map(|name| {
                let guest = door.admit(from, 0, name).expect("there is room").guest;
                guest.shares();
                guest
            })
            .collect()
    };
    let (one, two) = (stay(ip(1), 10), stay(ip(2), 20));
    assert_eq!(door.admit(ip(1), 9 * SECOND, 0).expect_err("it has half").why, Shed::Source);
    // Others come, of one connection each, and stay.
    let mut others = Vec::new();
    for (last, gone) in [(3, 10), (4, 20), (5, 11), (6, 21)] {
        let admitted = door.admit(ip(last), 0, 0).expect("two have all the room");
        assert_eq!(admitted.gives_way, Some(gone), "the oldest of who has most");
        admitted.guest.shares();
        others.push(admitted.guest);
    }
    // The two have two each, which is notably more than none, and not more than one who has one already would have.
    let last = door.admit(ip(7), 0, 0).expect("two is more than one");
    assert_eq!(last.gives_way, Some(12));
    last.guest.is_served();
    assert_eq!(door.admit(ip(3), 0, 0).expect_err("it would have as many as any").why, Shed::Total);
    assert_eq!((door.counts().open, door.counts().evicted), (8, 5));
    drop((one, two, others, last));
    assert!(is_empty(&door));
}

#[test]
fn what_is_served_and_does_not_share_stays() {
    let door: Arc<Door<u32>> = Door::new(Limits { most: 4, most_of_one: 4, waiting: 4, waiting_of_one: 4 });
    let guests = crowd(&door, ip(1), 0, 0, 4);
    guests.iter().for_each(Guest::is_served);
    assert_eq!(door.admit(ip(2), 0, 9).expect_err("all are served").why, Shed::Total);
    guests[2].shares();
    let other = door.admit(ip(2), 0, 9).expect("one shares");
    assert_eq!(other.gives_way, Some(2));
    guests[1].shares();
    guests[1].waits(0);
    guests[1].is_served();
    assert!(door.admit(ip(3), 0, 9).is_err(), "it shares no more");
    // Too late: it is gone.
    guests[2].shares();
    drop((guests, other));
    assert!(is_empty(&door));
}

#[test]
fn refusals_are_told_once_a_second_with_their_number() {
    let door: Arc<Door<u32>> = Door::new(Limits::quarter(1));
    let _one = door.admit(ip(1), 0, 0).expect("room");
    let tell = |now| door.admit(ip(1), now, 0).expect_err("full").tell;
    assert_eq!(tell(0), Some(1));
    assert_eq!((tell(1), tell(SECOND / 2), tell(SECOND - 1)), (None, None, None));
    assert_eq!(door.counts().closed(), [("source", 4), ("total", 0), ("gave-way", 0)]);
    // After a second the first gives way, and the next comes too early again.
    let _next = door.admit(ip(1), SECOND, 1).expect("the old one gives way");
    assert_eq!(tell(SECOND), Some(4));
}

proptest! {
    /// Whatever comes, goes and is served in whatever order: no limit is passed, and what is counted is what is there.
    #[test]
    fn limits_hold_and_counts_agree(steps in prop::collection::vec((0_u8..6, 0_u8..5, 0_u64..3), 1..200)) {
        let limits = Limits { most: 12, most_of_one: 5, waiting: 7, waiting_of_one: 3 };
        let door: Arc<Door<usize>> = Door::new(limits);
        let mut now = 0;
        let mut inside: Vec<(usize, IpAddr, Guest<usize>)> = Vec::new();
        for (name, (what, last, later)) in steps.into_iter().enumerate() {
            now += later * PATIENCE / 2;
            let at = if inside.is_empty() { 0 } else { usize::from(last) % inside.len() };
            match what {
                0 if !inside.is_empty() => drop(inside.remove(at)),
                1 if !inside.is_empty() => inside[at].2.is_served(),
                2 if !inside.is_empty() => inside[at].2.shares(),
                _ => if let Ok(admitted) = door.admit(ip(last), now, name) {
                    if let Some(gone) = admitted.gives_way {
                        let gone = inside.iter().position(|(name, ..)| *name == gone).expect("it was inside");
                        drop(inside.remove(gone));
                    }
                    inside.push((name, ip(last), admitted.guest));
                }
            }
            // A copy: what fails drops the guests, which look at the door themselves.
            let (open, waiting, sources) = {
                let state = door.state();
                (state.guests.len(), state.waiting.len(), state.sources.clone())
            };
            prop_assert_eq!(open, inside.len());
            prop_assert!(open <= limits.most && waiting <= limits.waiting);
            for (source, held) in &sources {
                prop_assert_eq!(held.all, inside.iter().filter(|(_, from, _)| from == source).count());
                prop_assert!(held.all <= limits.most_of_one && held.waiting <= limits.waiting_of_one && held.waiting <= held.all);
            }
        }
        drop(inside);
        prop_assert!(is_empty(&door));
    }
}
