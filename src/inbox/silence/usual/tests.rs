use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const AFTER: Duration = Duration::from_hours(6);

/// A Monday at midnight, UTC.
const MONDAY: i64 = 490_488;

/// A network and who listens to it, hour by hour.
#[derive(Default)]
struct World {
    traffic: Traffic,
    watched: BTreeSet<i64>,
    hour: i64,
}

impl World {
    fn new() -> Self {
        // 1 January 1970 was a Thursday.
        assert_eq!((MONDAY / 24 + 3) % 7, 0, "a Monday");
        Self { hour: MONDAY, ..Self::default() }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.hour * 3_600_000 + 1_800_000)
    }

    fn quiet(&self) -> Quiet {
        self.traffic.quiet(&self.watched, self.now(), AFTER)
    }

    /// Lets an hour pass, and answers whether the network counted as silent in it.
    fn pass(&mut self, is_heard: bool, is_watched: bool) -> bool {
        if is_heard {
            self.traffic.heard(self.hour, self.now());
        }
        let silent = self.quiet().is_silent();
        if is_watched {
            self.watched.insert(self.hour);
        }
        self.hour += 1;
        silent
    }

    /// Lets hours pass, and answers how often it began to count as silent; looks every few hours, to be quick.
    fn false_alarms(&mut self, hours: i64, mut is_heard: impl FnMut(i64) -> bool) -> usize {
        let (mut count, mut is_silent) = (0, false);
        for _ in 0..hours {
            let heard = is_heard(self.hour);
            is_silent &= !heard;
            if heard {
                self.traffic.heard(self.hour, self.now());
            } else if self.hour % 4 == 0 && !is_silent && self.quiet().is_silent() {
                (count, is_silent) = (count + 1, true);
            }
            self.watched.insert(self.hour);
            self.hour += 1;
        }
        count
    }

    /// Lets hours pass, and answers in how many of them it counted as silent.
    fn run(&mut self, hours: i64, mut is_heard: impl FnMut(i64) -> bool) -> usize {
        (0..hours)
            .filter(|_| {
                let heard = is_heard(self.hour);
                self.pass(heard, true)
            })
            .count()
    }
}

fn hour_of_day(hour: i64) -> i64 {
    hour.rem_euclid(24)
}

fn day_of_week(hour: i64) -> i64 {
    (hour - MONDAY).rem_euclid(WEEK) / 24
}

/// Monday to Friday, nine to five.
fn at_work(hour: i64) -> bool {
    day_of_week(hour) < 5 && (9..17).contains(&hour_of_day(hour))
}

#[test]
fn nights_and_weekends_are_no_silence_and_a_quiet_working_day_is() {
    let mut world = World::new();
    assert_eq!(world.run(4 * WEEK, at_work), 0, "four weeks, with their nights and weekends");
    // The fifth Tuesday: nothing comes any more.
    assert_eq!(world.run(24, at_work), 0);
    assert_eq!(world.run(9 + 6, |_| false), 0, "until three in the afternoon");
    assert!(world.pass(false, true), "six expected hours are over: {:?}", world.quiet());
    // It stays so over the night, and does not become usual.
    assert_eq!(world.run(3 * WEEK, |_| false), usize::try_from(3 * WEEK).unwrap());
    world.traffic.heard(world.hour, world.now());
    assert!(!world.quiet().is_silent(), "until something comes");
}

#[test]
fn a_weekend_alone_is_never_silence() {
    let mut world = World::new();
    world.run(4 * WEEK, at_work);
    world.run(4 * 24 + 17, at_work);
    assert_eq!(world.run(7 + 48 + 9, |_| false), 0, "from Friday evening to Monday morning");
    let Quiet::Known { expected, .. } = world.quiet() else { panic!("known") };
    assert!(expected < 1.0, "{expected}");
}

#[test]
fn nothing_is_said_of_what_is_hardly_known() {
    let mut world = World::new();
    assert_eq!(world.run(WEEK, |_| true), 0);
    assert_eq!(world.run(10 * WEEK, |_| false), 0, "a week is too little");
    let mut world = World::new();
    assert_eq!(world.run(4 * WEEK, |hour| (hour - MONDAY) % (3 * 24) == 0), 0);
    assert_eq!(world.quiet(), Quiet::Learning, "ten hours are too few");
    assert_eq!(world.run(4 * WEEK, |_| false), 0);
}

#[test]
fn a_network_with_little_traffic_is_given_its_time() {
    let mut rng = StdRng::seed_from_u64(7);
    for chance in [0.03, 0.1, 0.3] {
        let mut world = World::new();
        let day = |hour| (7..23).contains(&hour_of_day(hour));
        let false_alarms = world.false_alarms(16 * WEEK, |hour| day(hour) && rng.random_bool(chance));
        assert!(false_alarms <= 1, "{chance}: {false_alarms} in four months");
        let mut until_told = 1;
        while world.false_alarms(4, |_| false) == 0 && until_told < 6 * 168 {
            until_told += 4;
        }
        assert!(until_told < 6 * 168, "{chance}: told at last, after {until_told} hours");
        assert!(until_told > 12, "{chance}: not before half a day, after {until_told} hours");
    }
}

#[test]
fn conversations_that_come_in_bursts_are_no_silence_between_them() {
    let mut rng = StdRng::seed_from_u64(8);
    // On every third day or so somebody writes all afternoon.
    let (mut today, mut is_on) = (0, false);
    let mut world = World::new();
    let false_alarms = world.false_alarms(26 * WEEK, |hour| {
        if hour / 24 != today {
            (today, is_on) = (hour / 24, rng.random_bool(0.33));
        }
        is_on && (12..20).contains(&hour_of_day(hour))
    });
    assert!(false_alarms <= 3, "{false_alarms} in half a year");
}

#[test]
fn an_outage_does_not_hide_the_next_one() {
    let mut world = World::new();
    world.run(4 * WEEK, at_work);
    let first = world.run(3 * 24, |_| false);
    assert!(first > 24, "the first is told: {first}");
    world.run(WEEK - 3 * 24, at_work);
    let second = world.run(24 + 9, |hour| at_work(hour) && day_of_week(hour) == 0) + world.run(8, |_| false);
    assert!(second > 0, "a week later the second is told as soon: {:?}", world.quiet());
}

#[test]
fn hours_in_which_nobody_listened_do_not_count() {
    let mut world = World::new();
    world.run(4 * WEEK, at_work);
    for _ in 0..3 * 24 {
        assert!(!world.pass(false, false), "coucou was away");
    }
    let Quiet::Known { expected, .. } = world.quiet() else { panic!("known") };
    assert!(expected < 1.0, "after its return: {expected}");
    assert_eq!(world.run(9, |_| false), 0, "a night");
    assert_eq!(world.run(5, |_| false), 0, "five hours of Thursday");
    assert!(world.run(3, |_| false) > 0, "then it is silent");
}

#[test]
fn the_settings_say_how_much_is_worth_telling() {
    let mut world = World::new();
    world.run(4 * WEEK, |_| true);
    world.run(4, |_| false);
    let silent =
        |hours| world.traffic.quiet(&world.watched, world.now(), Duration::from_hours(hours)).is_silent();
    assert!(silent(4) && !silent(5));
}

#[test]
fn what_was_long_ago_is_forgotten() {
    let mut world = World::new();
    world.run(4 * WEEK, |_| true);
    world.traffic.forget(world.hour - WEEK);
    assert_eq!(world.quiet(), Quiet::Learning);
    assert_eq!(world.traffic.last_at(), Timestamp((world.hour - 1) * 3_600_000 + 1_800_000));
}
