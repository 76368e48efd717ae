//! Histories of one endpoint and the health that they end in.

use super::*;
use HealthEvent::{Tick as TickEvent, *};

const TICK: HealthEvent = TickEvent { waiting: false };
const WAITING: HealthEvent = TickEvent { waiting: true };

const SETTINGS: HealthSettings = HealthSettings {
    unhealthy_after_ms: 1_000,
    tick_ms: 100,
    patience: Patience { hang_after_ms: 3_000, first_byte_after_ms: 30_000 },
};

/// Plays (time, event) pairs with a tick every 50 ms in between, and returns the health at the end.
fn play(events: &[(Millis, HealthEvent)]) -> Health {
    let mut endpoint = EndpointHealth::new(true, 0);
    let mut now = 0;
    for (at, event) in events {
        while now + 50 < *at {
            now += 50;
            endpoint.apply(TICK, now, SETTINGS);
        }
        now = *at;
        endpoint.apply(*event, now, SETTINGS);
    }
    endpoint.health()
}

#[test]
fn histories_end_in_the_health_that_they_should() {
    let check = |name: &str, events: &[(Millis, HealthEvent)], expected: Health| {
        assert_eq!(play(events), expected, "{name}");
    };
    let ok = ProbeOk { sent_at: 10 };
    let refused = ConnectionFailed(Cause::ConnectionRefused);
    check("new", &[], Health::Unknown);
    check("probed", &[(12, ok)], Health::Healthy);
    check("refused at once", &[(12, ok), (13, refused)], Health::Unhealthy(Cause::ConnectionRefused));
    check(
        "an answer to a probe from before the fault mends nothing",
        &[(12, ok), (13, refused), (14, ok)],
        Health::Unhealthy(Cause::ConnectionRefused),
    );
    check("mended", &[(12, ok), (13, refused), (30, ProbeOk { sent_at: 20 })], Health::Healthy);
    check("quiet for less than the limit", &[(12, ok), (1_000, TICK)], Health::Healthy);
    check("silent", &[(12, ok), (1_012, TICK)], Health::Unhealthy(Cause::Silent));
    check(
        "late probes do not count while bytes arrive",
        &[(12, ok), (400, ProbeLate), (900, BytesSeen { at: 890 }), (1_800, TICK)],
        Health::Healthy,
    );
    check(
        "silent after the last byte",
        &[(12, ok), (900, BytesSeen { at: 890 }), (1_900, TICK)],
        Health::Unhealthy(Cause::Silent),
    );
    check("never answered", &[(1_100, ProbeLate)], Health::Unhealthy(Cause::Silent));
    check("loading", &[(12, ProbeNotReady)], Health::Unhealthy(Cause::EngineNotReady));
    check(
        "ready by Kubernetes, and not asked since",
        &[(12, PodReady(false)), (20, ProbeNotReady), (30, PodReady(true))],
        Health::Unknown,
    );
    check(
        "ready by Kubernetes, and it says otherwise",
        &[(12, PodReady(false)), (20, PodReady(true)), (30, ProbeNotReady), (40, PodReady(true))],
        Health::Unhealthy(Cause::EngineNotReady),
    );
    check("withdrawn", &[(12, ok), (20, PodReady(false))], Health::Unhealthy(Cause::PodNotReady));
    check("readiness is back", &[(12, ok), (20, PodReady(false)), (30, PodReady(true))], Health::Healthy);
    check(
        "one refused connect after another is quiet for half the limit",
        &[(12, ok), (400, ConnectTimedOut)],
        Health::Healthy,
    );
    check(
        "no connect and no sign of life",
        &[(12, ok), (600, ConnectTimedOut)],
        Health::Unhealthy(Cause::Silent),
    );
    check("two server errors", &[(12, ok), (13, ServerError), (14, ServerError)], Health::Healthy);
    let errors = [(12, ok), (13, ServerError), (14, ServerError), (15, ServerError)];
    check("three server errors", &errors, Health::Unhealthy(Cause::ServerErrors));
    let mut after = errors.to_vec();
    after.push((900, ProbeOk { sent_at: 890 }));
    check("probes do not end a quarantine", &after, Health::Unhealthy(Cause::ServerErrors));
}

/// Probes every 100 ms with this report, and a tick in between, from one time to another.
fn probed(
    endpoint: &mut EndpointHealth,
    times: std::ops::Range<Millis>,
    report: impl Fn(Millis) -> EngineReport,
) {
    for now in times.step_by(50) {
        if now % 100 == 0 {
            endpoint.apply(Report(report(now)), now, SETTINGS);
            endpoint.apply(ProbeOk { sent_at: now - 1 }, now, SETTINGS);
        } else {
            endpoint.apply(TICK, now, SETTINGS);
        }
    }
}

#[test]
fn an_engine_that_answers_probes_and_stands_still_is_hung_until_it_moves() {
    let busy = |steps| EngineReport { busy: true, steps: Some(steps), tokens: 0 };
    let mut endpoint = EndpointHealth::new(true, 0);
    probed(&mut endpoint, 100..5_000, |now| busy(now / 1_000));
    assert_eq!(endpoint.health(), Health::Healthy);
    probed(&mut endpoint, 5_000..6_900, |_| busy(4));
    assert_eq!(endpoint.health(), Health::Healthy, "2.9 s without a step");
    probed(&mut endpoint, 6_900..9_000, |_| busy(4));
    assert_eq!(endpoint.health(), Health::Unhealthy(Cause::Hung));
    assert_eq!(endpoint.trouble_since(), Some(4_000), "the last step");
    probed(&mut endpoint, 9_000..9_200, |_| busy(5));
    assert_eq!(endpoint.health(), Health::Healthy);
    // The engine was only slow: next time it gets twice as long.
    probed(&mut endpoint, 9_200..14_900, |_| busy(5));
    assert_eq!(endpoint.health(), Health::Healthy);
}

#[test]
fn a_backend_that_accepts_and_never_answers_is_hung_and_stays_out_for_a_while() {
    let mut endpoint = EndpointHealth::new(true, 0);
    for now in (50..=30_050).step_by(50) {
        endpoint.apply(ProbeOk { sent_at: now - 1 }, now, SETTINGS);
        endpoint.apply(WAITING, now, SETTINGS);
    }
    assert_eq!(endpoint.health(), Health::Unhealthy(Cause::Hung));
    for (now, health) in [(34_000, Health::Unhealthy(Cause::Hung)), (35_100, Health::Healthy)] {
        endpoint.apply(TICK, now - 1, SETTINGS);
        endpoint.apply(ProbeOk { sent_at: now - 1 }, now, SETTINGS);
        assert_eq!(endpoint.health(), health, "{now}");
    }
}

#[test]
fn an_observer_that_was_held_up_blames_nobody() {
    let mut endpoint = EndpointHealth::new(true, 0);
    endpoint.apply(ProbeOk { sent_at: 1 }, 2, SETTINGS);
    endpoint.apply(TICK, 60_000, SETTINGS);
    assert_eq!(endpoint.health(), Health::Healthy);
}

#[test]
fn trouble_begins_with_its_first_sign_and_ends_with_health() {
    let mut endpoint = EndpointHealth::new(true, 0);
    endpoint.apply(ProbeOk { sent_at: 0 }, 0, SETTINGS);
    for now in (50..=1_000).step_by(50) {
        endpoint.apply(if now == 500 { ProbeLate } else { TICK }, now, SETTINGS);
    }
    assert_eq!(endpoint.health(), Health::Unhealthy(Cause::Silent));
    assert_eq!(endpoint.trouble_since(), Some(500));
    endpoint.apply(ProbeOk { sent_at: 1_010 }, 1_020, SETTINGS);
    assert_eq!((endpoint.health(), endpoint.trouble_since()), (Health::Healthy, None));
}
