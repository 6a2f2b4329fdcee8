use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

const NOW: &str = "2026-11-21T12:00:00Z";

/// Written out, so that no test needs the time zones of the machine.
fn zone(name: &str) -> TimeZone {
    TimeZone::posix(match name {
        "Berlin" => "CET-1CEST,M3.5.0,M10.5.0/3",
        // The rule until 2011: clocks changed at one minute past midnight.
        "St. John's" => "NST3:30NDT,M3.2.0/0:01,M11.1.0/0:01",
        "Kiritimati" => "<+14>-14",
        _ => "UTC0",
    })
    .expect("a zone")
}

fn at(time: &str) -> Timestamp {
    time.parse().expect("a time")
}

fn good(time: &str) -> Candidate {
    Candidate {
        time: at(time).into(),
        sequence: 0,
        protected: false,
        good: true,
    }
}

fn damaged(time: &str) -> Candidate {
    Candidate {
        good: false,
        ..good(time)
    }
}

fn age(text: &str) -> Age {
    text.parse().expect("an age")
}

/// Decisions as `+` or `-` and the reasons.
fn told(backups: &[Candidate], policy: KeepPolicy, now: &str, name: &str) -> Vec<String> {
    let decisions = decide(backups, &policy, at(now), &zone(name));
    let one = |decision: &Decision| {
        let reasons: Vec<_> = decision.reasons.iter().map(Reason::to_string).collect();
        format!("{} {}", if decision.keep { '+' } else { '-' }, reasons.join("; "))
    };
    decisions.iter().map(one).collect()
}

fn daily(count: u32) -> KeepPolicy {
    KeepPolicy {
        daily: count,
        ..KeepPolicy::default()
    }
}

fn last(count: u32) -> KeepPolicy {
    KeepPolicy {
        last: count,
        ..KeepPolicy::default()
    }
}

fn within(text: &str) -> KeepPolicy {
    KeepPolicy {
        within: Some(age(text)),
        ..KeepPolicy::default()
    }
}

#[test]
fn every_rule_gives_its_reason() {
    let backups = [
        good("2026-11-21T11:40:00Z"),
        good("2026-11-21T11:20:00Z"),
        good("2026-11-20T05:54:00Z"),
        good("2026-11-15T05:54:00Z"),
        good("2026-10-31T05:54:00Z"),
        good("2025-06-01T05:54:00Z"),
    ];
    let policy = KeepPolicy {
        last: 2,
        hourly: 1,
        daily: 2,
        weekly: 2,
        monthly: 2,
        yearly: 2,
        within: Some(age("1w")),
    };
    assert_eq!(
        told(&backups, policy, NOW, "UTC"),
        [
            "+ last 1 of 2; hourly 2026-11-21 11:00+00:00; daily 2026-11-21; weekly 2026-W47; monthly 2026-11; \
             yearly 2026; within 1w",
            "+ last 2 of 2; within 1w",
            "+ daily 2026-11-20; within 1w",
            "+ weekly 2026-W46; within 1w",
            "+ monthly 2026-10",
            "+ yearly 2025",
        ]
    );
}

#[test]
fn a_forgotten_backup_lists_the_reason_of_each_rule() {
    let backups = [
        good("2026-11-21T05:00:00Z"),
        good("2026-11-20T06:00:00Z"),
        good("2026-11-20T05:00:00Z"),
        good("2026-11-19T05:00:00Z"),
    ];
    let policy = KeepPolicy {
        last: 1,
        daily: 2,
        within: Some(age("12h")),
        ..KeepPolicy::default()
    };
    assert_eq!(
        told(&backups, policy, NOW, "UTC"),
        [
            "+ last 1 of 1; daily 2026-11-21; within 12h",
            "+ daily 2026-11-20",
            "- last 1 used up; a newer one is daily 2026-11-20; older than 12h",
            "- last 1 used up; daily 2 used up; older than 12h",
        ]
    );
}

/// Made in this order.
fn in_order(times: &[&str]) -> Vec<Candidate> {
    let made = |(sequence, time): (u64, &&str)| Candidate { sequence, ..good(time) };
    (1..).zip(times).map(made).collect()
}

#[test]
fn a_backup_of_a_slow_clock_stays_as_long_as_earlier_backups() {
    let backups = in_order(&[
        "2026-11-18T05:00:00Z",
        "2026-11-19T05:00:00Z",
        "2020-01-01T00:00:00Z",
        "2020-01-02T00:00:00Z",
        "2026-11-20T05:00:00Z",
        "2026-11-21T05:00:00Z",
    ]);
    let after = "+ made after one that is kept and has a later time";
    assert_eq!(
        told(&backups, daily(3), NOW, "UTC"),
        [
            "- daily 3 used up",
            "+ daily 2026-11-19",
            after,
            after,
            "+ daily 2026-11-20",
            "+ daily 2026-11-21"
        ]
    );
    assert_eq!(
        told(&backups, daily(2), NOW, "UTC"),
        [
            "- daily 2 used up",
            "- daily 2 used up",
            "- daily 2 used up",
            "- daily 2 used up",
            "+ daily 2026-11-20",
            "+ daily 2026-11-21"
        ]
    );
    // The one that was made last stays, and is not the oldest.
    assert_eq!(
        told(&backups[..3], within("14d"), "2027-06-01T00:00:00Z", "UTC"),
        ["- older than 14d", "- older than 14d", "+ last good one"]
    );
    assert_eq!(
        told(&backups[..3], last(2), NOW, "UTC"),
        ["- last 2 used up", "+ last 2 of 2", "+ last 1 of 2"]
    );
}

#[test]
fn a_backup_of_a_fast_clock_hides_no_later_backup() {
    let backups = in_order(&[
        "2026-11-18T05:00:00Z",
        "2031-05-05T10:00:00Z",
        "2026-11-19T05:00:00Z",
        "2026-11-20T05:00:00Z",
    ]);
    let kept = [
        "- daily 2 used up",
        "+ in the future",
        "+ daily 2026-11-19",
        "+ daily 2026-11-20",
    ];
    assert_eq!(told(&backups, daily(2), NOW, "UTC"), kept);
    assert_eq!(
        told(&backups, last(2), NOW, "UTC"),
        ["- last 2 used up", "+ in the future", "+ last 2 of 2", "+ last 1 of 2"]
    );
    // When its date has come, it takes a turn like the others, and backups made after it are forgotten no sooner.
    let later = told(&backups, daily(1), "2031-05-06T00:00:00Z", "UTC");
    assert!(
        later[1].starts_with("+ daily") && later[2].starts_with('+') && later[3].starts_with('+'),
        "{later:?}"
    );
}

#[test]
fn a_backup_kept_for_another_reason_keeps_no_other() {
    let mut backups = in_order(&["2026-11-19T05:00:00Z", "2020-01-01T00:00:00Z", "2026-11-20T05:00:00Z"]);
    backups[0].protected = true;
    assert_eq!(
        told(&backups, daily(1), NOW, "UTC"),
        ["+ protected", "- daily 1 used up", "+ daily 2026-11-20"]
    );
}

#[test]
fn a_policy_without_rules_forgets_nothing_and_reports_it() {
    let backups = [good("2001-01-01T00:00:00Z"), damaged("2001-01-02T00:00:00Z")];
    assert!(KeepPolicy::default().is_empty());
    assert!(!daily(1).is_empty() && !within("1h").is_empty());
    assert_eq!(
        told(&backups, KeepPolicy::default(), NOW, "UTC"),
        ["+ no rule given, nothing is forgotten"; 2]
    );
    assert_eq!(decide(&[], &daily(1), at(NOW), &zone("UTC")), []);
}

#[test]
fn a_protected_backup_stays_and_counts_for_its_rule() {
    let mut backups = [
        good("2026-11-20T05:00:00Z"),
        good("2026-11-19T05:00:00Z"),
        good("2026-01-01T05:00:00Z"),
    ];
    backups[0].protected = true;
    backups[2].protected = true;
    assert_eq!(
        told(&backups, daily(1), NOW, "UTC"),
        ["+ protected; daily 2026-11-20", "- daily 1 used up", "+ protected"]
    );
}

#[test]
fn a_damaged_backup_displaces_no_good_backup() {
    let backups = [
        damaged("2026-11-21T05:00:00Z"),
        damaged("2026-11-20T07:00:00Z"),
        damaged("2026-11-20T06:00:00Z"),
        good("2026-11-20T05:00:00Z"),
        good("2026-11-19T05:00:00Z"),
        damaged("2026-11-18T05:00:00Z"),
    ];
    assert_eq!(
        told(&backups, daily(2), NOW, "UTC"),
        [
            "+ daily 2026-11-21, damaged and not counted",
            "+ daily 2026-11-20, damaged and not counted",
            "- a newer one is daily 2026-11-20",
            "+ daily 2026-11-20",
            "+ daily 2026-11-19",
            "- daily 2 used up",
        ]
    );
    assert_eq!(
        told(&backups[3..], last(1), NOW, "UTC"),
        ["+ last 1 of 1", "- last 1 used up", "- last 1 used up"]
    );
    assert_eq!(
        told(&backups[..1], last(1), NOW, "UTC"),
        ["+ last, damaged and not counted"]
    );
}

#[test]
fn the_last_good_backup_stays_at_any_age() {
    let backups = [
        damaged("2026-01-02T05:00:00Z"),
        good("2026-01-01T05:00:00Z"),
        good("2025-12-31T05:00:00Z"),
    ];
    assert_eq!(
        told(&backups, within("14d"), NOW, "UTC"),
        ["- older than 14d", "+ last good one", "- older than 14d"]
    );
    let backups = [damaged("2026-01-01T05:00:00Z"), damaged("2026-01-02T05:00:00Z")];
    assert_eq!(
        told(&backups, within("14d"), NOW, "UTC"),
        ["- older than 14d", "+ last one, none is good"]
    );
}

#[test]
fn a_future_backup_stays_and_counts_for_no_rule() {
    let backups = [
        good("2036-01-02T00:00:00Z"),
        good("2026-11-21T12:00:01Z"),
        good("2026-11-21T12:00:00Z"),
        good("2026-11-20T12:00:00Z"),
    ];
    assert_eq!(
        told(&backups, last(1), NOW, "UTC"),
        [
            "+ in the future",
            "+ in the future",
            "+ last 1 of 1",
            "- last 1 used up"
        ]
    );
    assert_eq!(told(&backups[..1], last(1), NOW, "UTC"), ["+ in the future"]);
}

#[test]
fn days_and_years_follow_the_time_zone() {
    let backups = [good("2026-01-01T10:00:00Z"), good("2025-12-31T23:30:00Z")];
    assert_eq!(
        told(&backups, daily(2), NOW, "UTC"),
        ["+ daily 2026-01-01", "+ daily 2025-12-31"]
    );
    let new_year = "- a newer one is daily 2026-01-01";
    assert_eq!(
        told(&backups, daily(2), NOW, "Berlin"),
        ["+ daily 2026-01-01", new_year]
    );
    let backups = [good("2025-12-31T10:00:00Z"), good("2025-12-31T09:59:59Z")];
    let policy = KeepPolicy {
        yearly: 2,
        ..KeepPolicy::default()
    };
    assert_eq!(
        told(&backups, policy, NOW, "Kiritimati"),
        ["+ yearly 2026", "+ yearly 2025"]
    );
}

#[test]
fn weeks_follow_iso_8601_across_the_new_year() {
    let policy = KeepPolicy {
        weekly: 9,
        ..KeepPolicy::default()
    };
    // 2026 has 53 weeks, and 2027-01-01 is a Friday of the last one; 2024-12-30 is a Monday of 2025's first.
    let cases = [
        ("2027-01-04T00:00:00Z", "2027-W01"),
        ("2027-01-03T23:59:59Z", "2026-W53"),
        ("2026-12-28T00:00:00Z", "2026-W53"),
        ("2024-12-30T00:00:00Z", "2025-W01"),
        ("2024-12-29T23:59:59Z", "2024-W52"),
    ];
    for (time, week) in cases {
        let decisions = told(&[good(time)], policy, "2027-02-01T00:00:00Z", "UTC");
        assert_eq!(decisions, [format!("+ weekly {week}")], "{time}");
    }
    let new_year = [cases[1], cases[2]].map(|(time, _)| good(time));
    assert!(!decide(&new_year, &policy, at("2027-02-01T00:00:00Z"), &zone("UTC"))[1].keep);
}

#[test]
fn the_repeated_hour_of_a_clock_change_counts_twice() {
    let policy = KeepPolicy {
        hourly: 9,
        ..KeepPolicy::default()
    };
    // 02:30 in Berlin, twice, and 02:15 before the change.
    let backups = [
        good("2026-10-25T01:30:00Z"),
        good("2026-10-25T00:30:00Z"),
        good("2026-10-25T00:15:00Z"),
    ];
    assert_eq!(
        told(&backups, policy, NOW, "Berlin"),
        [
            "+ hourly 2026-10-25 02:00+01:00",
            "+ hourly 2026-10-25 02:00+02:00",
            "- a newer one is hourly 2026-10-25 02:00+02:00",
        ]
    );
}

#[test]
fn a_day_of_23_or_25_hours_is_one_day() {
    // First and last minute in Berlin of the days when clocks change.
    for (first, end) in [
        ("2026-03-28T23:00:00Z", "2026-03-29T21:59:00Z"),
        ("2026-10-24T22:00:00Z", "2026-10-25T22:59:00Z"),
    ] {
        let before = Timestamp::from_second(at(first).as_second() - 1).expect("in range");
        let before = good(&before.to_string());
        let decisions = decide(&[good(end), good(first), before], &daily(9), at(NOW), &zone("Berlin"));
        assert_eq!(
            decisions.iter().map(|d| d.keep).collect::<Vec<_>>(),
            [true, false, true]
        );
    }
}

#[test]
fn a_day_that_begins_twice_is_still_one_day() {
    // 00:00:30 on November 1st, then clocks go back to 23:01 on October 31st, and midnight comes again.
    let backups = [
        good("2026-11-01T04:00:00Z"),
        good("2026-11-01T03:00:00Z"),
        good("2026-11-01T02:30:30Z"),
        good("2026-11-01T02:00:00Z"),
    ];
    assert_eq!(
        told(&backups, daily(9), NOW, "St. John's"),
        [
            "+ daily 2026-11-01",
            "+ daily 2026-10-31",
            "- a newer one is daily 2026-11-01",
            "- a newer one is daily 2026-10-31",
        ]
    );
}

#[test]
fn ages_are_counted_by_the_calendar_of_the_zone() {
    let cases = [
        // The same time on the previous day, 25 hours ago; and 24 hours ago.
        ("2026-10-25T12:00:00+01:00", "1d", "2026-10-24T12:00:00+02:00"),
        ("2026-10-25T12:00:00+01:00", "24h", "2026-10-24T13:00:00+02:00"),
        ("2026-03-29T12:00:00+02:00", "1d", "2026-03-28T12:00:00+01:00"),
        // 02:30 was skipped.
        ("2026-03-30T02:30:00+02:00", "1d", "2026-03-29T03:30:00+02:00"),
        ("2026-03-31T12:00:00+02:00", "1mo", "2026-02-28T12:00:00+01:00"),
        ("2028-02-29T12:00:00+01:00", "1y", "2027-02-28T12:00:00+01:00"),
        ("2026-11-21T12:00:00+01:00", "1y6m2w3d4h", "2025-05-04T08:00:00+02:00"),
    ];
    for (now, back, expected) in cases {
        let now = at(now).to_zoned(zone("Berlin"));
        assert_eq!(age(back).before(&now), at(expected), "{back} before {now}");
    }
    let backups = [
        good("2026-10-24T10:00:00Z"),
        good("2026-10-24T10:00:01Z"),
        good("2026-10-24T09:59:59Z"),
    ];
    let keep: Vec<_> = decide(&backups, &within("1d"), at("2026-10-25T11:00:00Z"), &zone("Berlin"))
        .iter()
        .map(|decision| decision.keep)
        .collect();
    assert_eq!(keep, [true, true, false]);
}

#[test]
fn an_age_beyond_the_calendar_keeps_everything() {
    let backups = [good("2026-11-20T05:00:00Z"), good("1970-01-01T00:00:00Z")];
    for text in ["9999y", "4294967295y", "4294967295h"] {
        let decisions = decide(&backups, &within(text), at(NOW), &zone("Berlin"));
        assert!(decisions.iter().all(|decision| decision.keep), "{text}");
    }
}

/// 2026-11-21T12:00:00Z.
const NOW_SECOND: i64 = 1_795_262_400;

/// Backups of about two and a half years, some minutes or hours apart, some months; a few in the future.
fn backups() -> impl Strategy<Value = Vec<Candidate>> {
    let hours = 3600_i64;
    let back = prop_oneof![
        4 => 0..48 * hours,
        4 => 0..40 * 24 * hours,
        4 => 0..900 * 24 * hours,
        1 => -48 * hours..0,
    ];
    let one = (back, prop::bool::weighted(0.1), prop::bool::weighted(0.8));
    prop::collection::vec(one, 0..60).prop_map(|list| {
        let by_time: BTreeMap<_, _> = list
            .into_iter()
            .map(|(back, protected, good)| (NOW_SECOND - back, (protected, good)))
            .collect();
        let candidate = |(second, (protected, good))| Candidate {
            time: Timestamp::from_second(second).expect("in range").into(),
            sequence: 0,
            protected,
            good,
        };
        by_time.into_iter().map(candidate).collect()
    })
}

/// The same, made in another order than that of their times: clocks were slow or fast now and then.
fn backups_of_wrong_clocks() -> impl Strategy<Value = Vec<Candidate>> {
    (backups(), prop::collection::vec(0..8_u64, 60)).prop_map(|(mut backups, moved)| {
        for ((place, backup), moved) in (1..).zip(&mut backups).zip(moved) {
            backup.sequence = place + moved;
        }
        backups
    })
}

fn policies() -> impl Strategy<Value = KeepPolicy> {
    let count = || prop_oneof![Just(0), 0..4_u32, 0..20_u32];
    let within = prop::option::of(prop::sample::select(vec!["6h", "1d", "14d", "1mo", "1y6mo"]));
    (count(), count(), count(), count(), count(), count(), within).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within)| KeepPolicy {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within: within.map(age),
        },
    )
}

fn zones() -> impl Strategy<Value = TimeZone> {
    prop::sample::select(vec!["UTC", "Berlin", "St. John's", "Kiritimati"]).prop_map(zone)
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW_SECOND).expect("in range")
}

fn kept(backups: &[Candidate], policy: &KeepPolicy, zone: &TimeZone) -> Vec<Candidate> {
    let decisions = decide(backups, policy, now(), zone);
    assert_eq!(decisions.len(), backups.len());
    let both = backups.iter().zip(decisions);
    both.filter_map(|(backup, decision)| decision.keep.then_some(*backup))
        .collect()
}

fn is_past(backup: &Candidate) -> bool {
    backup.time.timestamp() <= now()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn with_wrong_clocks_a_second_run_or_a_larger_policy_forgets_no_more(
        backups in backups_of_wrong_clocks(), policy in policies(), more in 1..5_u32, zone in zones(),
    ) {
        let once = kept(&backups, &policy, &zone);
        prop_assert_eq!(&kept(&once, &policy, &zone), &once);
        let mut larger = policy;
        larger.daily += more;
        let large = kept(&backups, &larger, &zone);
        prop_assert!(policy.is_empty() || once.iter().all(|backup| large.contains(backup)));
    }

    #[test]
    fn with_wrong_clocks_earlier_backups_dated_later_are_forgotten_first(
        backups in backups_of_wrong_clocks(), policy in policies(), zone in zones(),
    ) {
        let backups: Vec<_> = backups.into_iter().map(|one| Candidate { protected: false, ..one }).collect();
        let stay = kept(&backups, &policy, &zone);
        for gone in backups.iter().filter(|backup| !stay.contains(backup)) {
            let outlives = |other: &&Candidate| {
                is_past(other) && other.order() < gone.order() && other.time > gone.time
            };
            prop_assert!(!stay.iter().any(|other| outlives(&other)), "{gone:?}");
        }
        let last = backups.iter().filter(|backup| is_past(backup) && backup.good).max_by_key(|backup| backup.order());
        prop_assert!(last.is_none_or(|last| stay.contains(last)));
    }

    #[test]
    fn with_wrong_clocks_protecting_one_changes_no_other(
        mut backups in backups_of_wrong_clocks(), place: prop::sample::Index, policy in policies(), zone in zones(),
    ) {
        prop_assume!(!backups.is_empty());
        let place = place.index(backups.len());
        backups[place].protected = false;
        let keeps = |backups: &[Candidate]| -> Vec<bool> {
            decide(backups, &policy, now(), &zone).iter().map(|decision| decision.keep).collect()
        };
        let mut before = keeps(&backups);
        backups[place].protected = true;
        before[place] = true;
        prop_assert_eq!(keeps(&backups), before);
    }

    #[test]
    fn last_good_protected_and_future_backups_are_never_forgotten(backups in backups(), policy in policies(), zone in zones()) {
        let kept = kept(&backups, &policy, &zone);
        let newest = |wanted: &dyn Fn(&&Candidate) -> bool| backups.iter().filter(wanted).max_by_key(|b| b.time);
        for backup in newest(&|b| b.good).into_iter().chain(newest(&|b| b.good && is_past(b))) {
            prop_assert!(kept.contains(backup));
        }
        prop_assert!(backups.iter().all(|b| kept.contains(b) || !b.protected && is_past(b)));
        prop_assert!(backups.is_empty() || !kept.is_empty());
    }

    #[test]
    fn every_decision_has_a_reason(backups in backups(), policy in policies(), zone in zones()) {
        let decisions = decide(&backups, &policy, now(), &zone);
        prop_assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
    }

    #[test]
    fn the_order_of_the_backups_does_not_matter(
        (backups, shuffled) in backups().prop_flat_map(|b| (Just(b.clone()), Just(b).prop_shuffle())),
        policy in policies(),
        zone in zones(),
    ) {
        let by_time = |backups: &[Candidate]| -> Vec<_> {
            let decisions = decide(backups, &policy, now(), &zone);
            let mut both: Vec<_> = backups.iter().map(|b| b.time).zip(decisions).collect();
            both.sort_by_key(|(time, _)| *time);
            both
        };
        prop_assert_eq!(by_time(&backups), by_time(&shuffled));
    }

    #[test]
    fn forgetting_twice_forgets_nothing_more(backups in backups(), policy in policies(), zone in zones()) {
        let once = kept(&backups, &policy, &zone);
        prop_assert_eq!(kept(&once, &policy, &zone), once);
    }

    #[test]
    fn rules_keep_no_more_good_backups_than_they_count(backups in backups(), policy in policies(), zone in zones()) {
        let decisions = decide(&backups, &policy, now(), &zone);
        let counted = backups.iter().zip(&decisions).filter(|(backup, decision)| {
            let otherwise = |reason: &Reason| {
                matches!(
                    reason,
                    Reason::Protected | Reason::Future | Reason::Within { .. } | Reason::LastGood | Reason::NoRule
                )
            };
            decision.keep && backup.good && !decision.reasons.iter().any(otherwise)
        });
        let rules: u32 = policy.rules().iter().map(|(_, count)| count).sum();
        prop_assert!(counted.count() <= rules as usize);
    }

    #[test]
    fn a_larger_policy_forgets_no_more(
        backups in backups(), policy in policies(), rule in 0..7_usize, more in 1..5_u32, zone in zones(),
    ) {
        prop_assume!(!policy.is_empty());
        let mut larger = policy;
        match rule {
            0 => larger.last += more,
            1 => larger.hourly += more,
            2 => larger.daily += more,
            3 => larger.weekly += more,
            4 => larger.monthly += more,
            5 => larger.yearly += more,
            _ => larger.within = Some(age("5y")),
        }
        let (small, large) = (kept(&backups, &policy, &zone), kept(&backups, &larger, &zone));
        // A larger policy may keep a newest good one by a rule; it is kept by the smaller one as well.
        prop_assert!(small.iter().all(|backup| large.contains(backup)));
    }

    #[test]
    fn a_newer_backup_revives_none_and_costs_each_rule_one_at_most(
        mut backups in backups(), good: bool, policy in policies(), zone in zones(),
    ) {
        backups.retain(|backup| backup.time.timestamp() < now());
        let before = kept(&backups, &policy, &zone);
        backups.push(Candidate { time: now().into(), sequence: 0, protected: false, good });
        let after = kept(&backups, &policy, &zone);
        prop_assert!(after.iter().all(|backup| before.contains(backup) || backup.time == now().into()));
        let gone = before.iter().filter(|backup| backup.good && !after.contains(backup)).count();
        let rules = policy.rules().iter().filter(|(_, count)| *count > 0).count();
        // And the one that stayed only because it was the last good one.
        prop_assert!(gone <= rules + 1);
        prop_assert!(good || gone == 0, "a damaged backup pushed a good one out");
    }

    #[test]
    fn protecting_one_changes_no_other(
        mut backups in backups(), place: prop::sample::Index, policy in policies(), zone in zones(),
    ) {
        prop_assume!(!backups.is_empty());
        let place = place.index(backups.len());
        backups[place].protected = false;
        let without = decide(&backups, &policy, now(), &zone);
        backups[place].protected = true;
        let mut with = decide(&backups, &policy, now(), &zone);
        prop_assert!(with[place].keep);
        with[place] = without[place].clone();
        prop_assert_eq!(with, without);
    }
}
