//! The JSON Schema of the webhook's payloads, `docs/schema/webhook.json`: made from the types that write them.
//!
//! Built for tests alone. `COUCOU_WRITE_SCHEMA=1 cargo test --lib schema::` writes the file anew.

use std::{env, fs, path::Path};

use boon::{Compiler, SchemaIndex, Schemas};
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

use crate::{
    messages::{
        bridge::{BridgeData, BridgePayload},
        payload::{Data, Payload, Test, TestData},
    },
    outbox::shape::{self, Batch, CloudEvent},
};

const FILE: &str = "docs/schema/webhook.json";

/// `data` of a `CloudEvents` event.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is of use")]
enum EventData {
    Message(Data<'static>),
    Bridge(BridgeData<'static>),
    Test(TestData<'static>),
}

/// One of `data.messages` of a batch.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is of use")]
enum Entry {
    Message(Payload<'static>),
    Bridge(BridgePayload<'static>),
    Test(Test<'static>),
}

/// What is left out is not null: it need not be allowed to be.
struct LeftOut;

impl Transform for LeftOut {
    fn transform(&mut self, schema: &mut Schema) {
        let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            let optional = properties.iter_mut().filter(|(key, _)| !required.contains(&json!(key)));
            for (_, property) in optional {
                never_null(property);
            }
        }
        transform_subschemas(self, schema);
    }
}

fn never_null(schema: &mut Value) {
    if let Some(types) = schema.get_mut("type").filter(|types| types.is_array()) {
        let kept: Vec<Value> =
            types.as_array().unwrap().iter().filter(|one| *one != "null").cloned().collect();
        *types = kept.into_iter().next().unwrap();
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        let kept: Vec<Value> = any.iter().filter(|one| one["type"] != "null").cloned().collect();
        let [Value::Object(only)] = &kept[..] else { panic!("one alternative to null: {schema}") };
        let object = schema.as_object_mut().unwrap();
        let only = only.clone();
        object.remove("anyOf");
        object.extend(only);
    }
}

/// What the type of a payload says of its data.
pub(crate) fn by_type(schema: &mut Schema) {
    let rule = |types: &[&str], then: Value| {
        json!({
            "if": {"properties": {"type": {"enum": types}}, "required": ["type"]},
            "then": {"properties": {"data": then}},
        })
    };
    let said =
        ["message.created", "message.edited", "message.redacted", "reaction.created", "reaction.redacted"];
    let nothing = json!({"type": "null"});
    schema.insert(
        "allOf".to_owned(),
        json!([
            {"properties": {"type": {"not": {"enum": [
                "webhook.test", "bridge.silent", "bridge.disconnected", "bridge.resumed",
            ]}}}},
            rule(&said, json!({"properties": {"content": {"type": "object"}}})),
            rule(&["message.redacted", "reaction.redacted"], json!({"required": ["redacts"]})),
            rule(
                &["room.joined", "room.left"],
                json!({"required": ["membership"], "properties": {"content": nothing}}),
            ),
            rule(
                &["message.undecryptable"],
                json!({"required": ["undecryptable"], "properties": {"content": nothing}}),
            ),
        ]),
    );
}

fn generated() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let events = reference::<Payload<'static>>(&mut generator);
    let bridges = reference::<BridgePayload<'static>>(&mut generator);
    let tests = reference::<Test<'static>>(&mut generator);
    let batches = reference::<Batch<Entry>>(&mut generator);
    let cloud = reference::<CloudEvent<EventData>>(&mut generator);
    let mut schema = Schema::try_from(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The body of a webhook call of coucou",
        "description": "Version 1. New keys, types and kinds may come without a new version: make types and tests \
            of this, and ignore what you do not know.",
        "anyOf": [events, bridges, tests, batches, cloud, {"type": "array", "minItems": 1, "items": cloud}],
        "$defs": generator.take_definitions(true),
    }))
    .unwrap();
    LeftOut.transform(&mut schema);
    schema.into()
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The same, in which no object may have a key that is not in the schema.
fn strict(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(strict);
            // Rules for certain types name some properties only.
            if object.contains_key("properties") && object.get("type") == Some(&json!("object")) {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(strict),
        _ => {}
    }
}

struct Validator(Schemas, SchemaIndex);

impl Validator {
    fn new(mut schema: Value, at: &str) -> Self {
        // What the event's content has is its sender's business.
        schema["$defs"]["Matrix"]["properties"]["content"] = json!({"type": "object"});
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource("urn:coucou:webhook", schema).unwrap();
        let index = compiler.compile(&format!("urn:coucou:webhook{at}"), &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn complaint(&self, payload: &Value) -> Option<String> {
        self.0.validate(payload, self.1).err().map(|error| format!("{error:#}"))
    }
}

fn committed() -> Value {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every payload of which there is a snapshot, by name.
fn snapshots() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/messages/snapshots");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let body = text.splitn(3, "---\n").nth(2).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if let Ok(Value::Object(payload)) = serde_json::from_str(body) {
            found.push((name, Value::Object(payload)));
        }
    }
    assert!(found.len() > 50, "only {}", found.len());
    found
}

#[test]
fn the_schema_of_the_documentation_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = serde_json::to_string_pretty(&generated()).unwrap() + "\n";
    if env::var_os("COUCOU_WRITE_SCHEMA").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{FILE} is not what the types say: write it with `COUCOU_WRITE_SCHEMA=1 cargo test --lib schema::`"
    );
}

#[test]
fn every_payload_is_as_the_schema_says_and_has_nothing_else() {
    let loose = committed();
    let mut exact = loose.clone();
    strict(&mut exact);
    for (schema, called) in [(loose, "as published"), (exact, "with known keys alone")] {
        let validator = Validator::new(schema, "");
        for (name, payload) in snapshots() {
            let complaint = validator.complaint(&payload);
            assert!(complaint.is_none(), "{name}, {called}: {}", complaint.unwrap());
            let bytes = payload.to_string();
            for (detail, format) in shape::ALL {
                let shaped = shape::body(bytes.as_bytes(), detail, format).unwrap();
                let complaint = validator.complaint(&serde_json::from_slice(&shaped).unwrap());
                assert!(complaint.is_none(), "{name}, {detail:?} {format:?}: {}", complaint.unwrap());
            }
        }
    }
}

#[test]
fn the_schema_refuses_what_is_no_payload() {
    let validator = Validator::new(committed(), "");
    let snapshots = snapshots();
    let of = |name: &str| {
        let found = snapshots.iter().find(|(known, _)| known.ends_with(&format!("__{name}")));
        found.unwrap_or_else(|| panic!("a snapshot of {name}")).1.clone()
    };
    let wrong: Vec<(&str, &str, Value)> = vec![
        ("text", "/type", json!("message.eaten")),
        ("text", "/timestamp", json!("yesterday")),
        ("text", "/version", json!(2)),
        ("text", "/data/id", json!("msg_1")),
        ("text", "/data/sequence", json!(0)),
        ("text", "/data/direction", json!("up")),
        ("text", "/data/content", Value::Null),
        ("text", "/data/content/kind", json!("poem")),
        ("text", "/data/content/text", Value::Null),
        ("video", "/data/content/media/size", json!("large")),
        ("room_joined", "/data/content", json!({"kind": "text"})),
        ("text", "/data/encryption/trust", json!("blind")),
        ("webhook_test", "/data/text", Value::Null),
        ("bridge_no_messages", "/data/reason", json!("boredom")),
        ("bridge_no_messages", "/data/since", json!("yesterday")),
        ("bridge_no_messages", "/type", json!("message.created")),
    ];
    for (name, pointer, value) in wrong {
        let mut payload = of(name);
        *payload.pointer_mut(pointer).unwrap_or_else(|| panic!("{name} has {pointer}")) = value;
        assert!(validator.complaint(&payload).is_some(), "{name} with another {pointer} was let pass");
    }
    for (name, object, key) in [
        ("text", "/data", "late"),
        ("text", "/data", "network"),
        ("text", "/data/sender", "avatar"),
        ("redaction_old", "/data", "redacts"),
        ("room_left", "/data", "membership"),
        ("undecryptable", "/data", "undecryptable"),
        ("poll", "/data/content/poll", "question"),
        ("bridge_login_lost", "/data", "network"),
    ] {
        let mut payload = of(name);
        let object: &mut Map<String, Value> = payload.pointer_mut(object).unwrap().as_object_mut().unwrap();
        assert!(object.remove(key).is_some(), "{name} has {key}");
        assert!(validator.complaint(&payload).is_some(), "{name} without {key} was let pass");
    }
}
