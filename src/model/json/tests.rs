use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use super::*;

fn read(content: &str) -> (String, Vec<(String, RepairReason)>) {
    let event = format!("{{\"type\": \"x\", \"content\": {content}}}");
    let body = EventBody::read(event.as_bytes()).unwrap();
    let repairs = body.repairs.into_iter().map(|repair| (repair.field, repair.reason));
    (serde_json::to_string(&body.content).unwrap(), repairs.collect())
}

fn deep(levels: usize) -> String {
    format!("{{\"a\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
}

#[test]
fn what_is_as_it_should_be_stays_so() {
    for content in [
        "{}",
        "{\"a\":[1,-2,true,false,null,\"\u{0}x \u{1f337}\"]}".replace('\u{0}', "\\u0000").as_str(),
        "{\"a\":18446744073709551615,\"b\":-9223372036854775808}",
        "{\"\":{\"\":{}}}",
        &deep(120),
    ] {
        let (written, repairs) = read(content);
        assert_eq!((written.as_str(), &repairs[..]), (content, &[][..]));
    }
    // Spaces and escapes are no part of what is said.
    assert_eq!(read(" { \"a\" : [ ] , \"b\\/\" : \"\\u00e9\" } ").0, "{\"a\":[],\"b/\":\"é\"}");
    assert_eq!(read("{\"a\": \"\\ud83c\\udf37\"}").0, "{\"a\":\"🌷\"}");
}

#[test]
fn numbers_are_written_as_they_were() {
    for number in [
        "1.0",
        "1.50",
        "1e2",
        "1E+2",
        "-0",
        "-0.0",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
    ] {
        let content = format!("{{\"a\":{number},\"b\":[{number}]}}");
        assert_eq!(read(&content), (content, vec![]));
    }
    let (written, repairs) = read("{\"info\":{\"size\":1e400},\"a\":[7,-1e999]}");
    assert_eq!(written, "{\"info\":{\"size\":1e400},\"a\":[7,-1e999]}");
    let out = RepairReason::NumberOutOfRange;
    assert_eq!(repairs, [("/content/info/size".to_owned(), out), ("/content/a/1".to_owned(), out)]);
}

#[test]
fn what_can_be_repaired_is_and_is_told() {
    use RepairReason::{ControlCharacter, DuplicateKey, InvalidEscape, LoneSurrogate, NotANumber};
    for (content, expected, field, reason) in [
        ("{\"body\":\"x\\ud83d\"}", "{\"body\":\"x\u{fffd}\"}", "/content/body", LoneSurrogate),
        ("{\"body\":\"\\udf37x\"}", "{\"body\":\"\u{fffd}x\"}", "/content/body", LoneSurrogate),
        ("{\"a\":[\"\\ud83d\\u0041\"]}", "{\"a\":[\"\u{fffd}A\"]}", "/content/a/0", LoneSurrogate),
        ("{\"\\ud83d\":1}", "{\"\u{fffd}\":1}", "/content/\u{fffd}", LoneSurrogate),
        ("{\"a\":\"\\x41\"}", "{\"a\":\"\u{fffd}41\"}", "/content/a", InvalidEscape),
        ("{\"a\":\"\\u12g4\"}", "{\"a\":\"\u{fffd}12g4\"}", "/content/a", InvalidEscape),
        ("{\"a\":\"x\ny\"}", "{\"a\":\"x\\ny\"}", "/content/a", ControlCharacter),
        ("{\"a/b~\":NaN}", "{\"a/b~\":null}", "/content/a~1b~0", NotANumber),
        ("{\"a\":-Infinity}", "{\"a\":null}", "/content/a", NotANumber),
        ("{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":3,\"b\":2}", "/content/a", DuplicateKey),
    ] {
        let (written, repairs) = read(content);
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(expected).unwrap(), "{content}");
        assert_eq!(repairs, [(field.to_owned(), reason)], "{content}");
    }
    let (written, repairs) = read(&deep(121));
    assert_eq!((repairs.len(), repairs[0].1), (1, RepairReason::TooDeep));
    assert_eq!(written.matches('[').count(), 119);
}

#[test]
fn nesting_without_bottom_overflows_nothing() {
    for levels in [1_000, 100_000] {
        let (written, repairs) = read(&deep(levels));
        assert!(written.contains("null"));
        assert_eq!(repairs.iter().map(|repair| repair.1).collect::<Vec<_>>(), [RepairReason::TooDeep]);
    }
    let brackets = "[\"]\\\"[\",{\"{\":\"}\"}]".repeat(3).replace("][", "],[");
    let content = format!("{{\"a\":{}[{brackets}]{},\"b\":1}}", "[".repeat(200), "]".repeat(200));
    assert!(read(&content).0.ends_with(",\"b\":1}"), "what follows is read");
}

#[test]
fn bytes_that_are_no_text_are_repaired() {
    let body = EventBody::read(b"{\"type\":\"x\",\"content\":{\"body\":\"a\xffb\xed\xa0\xbd\"}}").unwrap();
    assert!(body.content["body"].as_str().unwrap().starts_with("a\u{fffd}b\u{fffd}"));
    assert_eq!(body.repairs, [Repair::new("/content/body", RepairReason::NotUtf8)]);
}

#[test]
fn what_is_no_object_is_not_read() {
    for text in [
        "",
        " ",
        "7",
        "[]",
        "\"{}\"",
        "null",
        "{",
        "{}x",
        "{} {}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":+1}",
        "{\"a\":-}",
        "{\"a\":\"}",
        "{\"a\":\"\\",
        "{\"a\":tru}",
        "{\"a\":[1}",
        "{\"a\":Infinit}",
        "\u{feff}{}",
    ] {
        assert_eq!(EventBody::read(text.as_bytes()).unwrap_err(), NotJson, "{text}");
        // Within what is cut off, too, nothing ends too early.
    }
    assert!(EventBody::read(format!("{{\"a\":{}", "[".repeat(50_000)).as_bytes()).is_err());
}

#[test]
fn an_event_without_what_it_needs_says_so() {
    use RepairReason::{Missing, WrongType};
    let of = |event: &str| {
        let body = EventBody::read(event.as_bytes()).unwrap();
        (body.event_type, body.content.len(), body.repairs)
    };
    let missing = vec![Repair::new("/type", Missing), Repair::new("/content", Missing)];
    assert_eq!(of("{}"), (None, 0, missing));
    let wrong = vec![Repair::new("/type", WrongType), Repair::new("/content", WrongType)];
    assert_eq!(of("{\"type\": 7, \"content\": []}"), (None, 0, wrong));
    assert_eq!(
        of("{\"type\": \"x\", \"content\": {\"a\": 1}, \"odd\": \"\\ud800\"}"),
        (Some("x".to_owned()), 1, vec![])
    );
}

#[test]
fn notes_are_bounded() {
    let many = "\"\\ud800\",".repeat(1_000);
    let name = "x".repeat(10_000);
    let (_, repairs) = read(&format!("{{\"{name}\":{{\"{name}\":[{many}1]}}}}"));
    assert_eq!(repairs.len(), 32);
    assert!(repairs.iter().all(|repair| repair.0.len() <= 255));
    let dive = format!("{{\"{name}\":").repeat(100);
    let (_, repairs) = read(&format!("{dive}\"\\ud800\"{}", "}".repeat(100)));
    assert_eq!(repairs[0].0.len(), 255);
}

#[test]
fn a_relation_comes_from_outside_unless_it_is_inside() {
    let body = |content: &str| {
        EventBody::read(format!("{{\"type\":\"x\",\"content\":{content}}}").as_bytes()).unwrap()
    };
    let adopted = |inside: &str, outside: &str| {
        let mut inside = body(inside);
        inside.adopt_relation(&body(outside));
        (
            serde_json::to_string(&inside.content).unwrap(),
            inside.content.get("m.relates_to").cloned(),
            inside.repairs,
        )
    };
    let outside = "{\"m.relates_to\":{\"n\":1.50,\"x\":\"\\ud800\"},\"x\":\"\\ud800\"}";
    let (written, read, repairs) = adopted("{\"body\":\"a\"}", outside);
    assert_eq!(written, "{\"body\":\"a\",\"m.relates_to\":{\"n\":1.50,\"x\":\"\u{fffd}\"}}");
    assert_eq!(read, Some(json!({"n": 1.5, "x": "\u{fffd}"})));
    assert_eq!(repairs, [Repair::new("/content/m.relates_to/x", RepairReason::LoneSurrogate)]);
    let (written, _, repairs) = adopted("{\"m.relates_to\":{\"n\":1e2}}", outside);
    assert_eq!((written.as_str(), repairs.len()), ("{\"m.relates_to\":{\"n\":1e2}}", 0));
    assert_eq!(adopted("{}", "{}").0, "{}");
}

#[test]
fn a_member_can_be_left_out() {
    for content in ["{\"a\":1,\"b\":2}", "{\"a\":1.50,\"b\":2}"] {
        let body = EventBody::read(format!("{{\"type\":\"x\",\"content\":{content}}}").as_bytes()).unwrap();
        let without = body.content.without("a");
        assert_eq!(serde_json::to_string(&without).unwrap(), "{\"b\":2}");
        assert_eq!(without.len(), 1);
    }
}

/// Any text is read or refused, and what is read is JSON that stays as it is when it is read again.
#[test]
fn whatever_comes_nothing_breaks() {
    const PARTS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\\u",
        "\\ud83d",
        "\\udf37",
        "d83d",
        "\"type\"",
        "\"content\":{",
        "1",
        "-",
        ".",
        "e9",
        "1e400",
        "NaN",
        "Infinity",
        "true",
        "null",
        "\u{1}",
        " ",
        "é",
        "\"a\":",
        "\"a\":1,",
        "\"x\"",
        "0",
        "[[[[[[[[",
        "]]]]]]]]",
    ];
    let mut random = StdRng::seed_from_u64(12);
    let mut read_count = 0;
    for _ in 0..200_000 {
        let count = random.random_range(0..12);
        let mut text: Vec<u8> = (0..count).flat_map(|_| PARTS.choose(&mut random).unwrap().bytes()).collect();
        if random.random_bool(0.5) {
            text = [b"{\"type\":\"x\",\"content\":{\"a\":", &text[..], b"}}"].concat();
        }
        if random.random_bool(0.1) {
            text.push(random.random());
        }
        let Ok(body) = EventBody::read(&text) else { continue };
        read_count += 1;
        let written = serde_json::to_string(&body.content).unwrap();
        assert!(serde_json::from_str::<&RawValue>(&written).is_ok(), "{written}");
        assert_eq!(read(&written).0, written);
    }
    assert!(read_count > 2_000, "{read_count}");
}
