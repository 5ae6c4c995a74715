use super::*;

#[test]
fn metrics_have_a_port_of_their_own_or_the_main_one() {
    let load = |more: &[(&str, &str)]| load("", more).unwrap().metrics;
    let plain = load(&[]);
    assert_eq!((plain.port, &*plain.path, plain.token.is_none()), (None, "/metrics", true));
    // As Clever Cloud sets them; the main port is no other.
    let clever = load(&[
        ("PORT", "8080"),
        ("CC_METRICS_PROMETHEUS_PORT", "9100"),
        ("CC_METRICS_PROMETHEUS_PATH", "/inside/metrics"),
        ("CC_METRICS_PROMETHEUS_PASSWORD", "hush"),
    ]);
    assert_eq!((clever.port, &*clever.path, clever.token.is_some()), (Some(9100), "/inside/metrics", true));
    assert_eq!(load(&[("PORT", "9100"), ("COUCOU_METRICS_PORT", "9100")]).port, None);
    for (name, value, says) in [
        ("COUCOU_METRICS_PORT", "0", "metrics.port must be a number from 1 to 65535"),
        ("COUCOU_METRICS_PORT", "x", "COUCOU_METRICS_PORT=9100"),
        ("COUCOU_METRICS_PATH", "metrics", "metrics.path must be a path"),
        ("COUCOU_METRICS_PATH", "/api/v1/health", "none of coucou's own"),
        ("COUCOU_METRICS_PATH", "/{all}", "metrics.path must be a path"),
        ("COUCOU_METRICS_TOKEN", "hush hush", "metrics.token must be of visible ASCII characters"),
    ] {
        let said = message("", &[(name, value)]);
        assert!(said.contains(says) && !said.contains("hush"), "{said}");
    }
}
