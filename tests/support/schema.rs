//! The published JSON Schema of the webhook's payloads, which every delivery of every scenario is held against.

use std::{fs, sync::LazyLock};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

use super::repository;

static PUBLISHED: LazyLock<(Schemas, SchemaIndex)> = LazyLock::new(|| {
    let text = fs::read_to_string(repository().join("docs/schema/webhook.json")).unwrap();
    let mut schemas = Schemas::new();
    let mut compiler = Compiler::new();
    compiler.enable_format_assertions();
    compiler.add_resource("urn:coucou:webhook", serde_json::from_str(&text).unwrap()).unwrap();
    let index = compiler.compile("urn:coucou:webhook", &mut schemas).unwrap();
    (schemas, index)
});

/// What the schema has against a payload.
pub(crate) fn complaint(payload: &Value) -> Option<String> {
    let (schemas, index) = &*PUBLISHED;
    schemas.validate(payload, *index).err().map(|error| format!("{error:#}"))
}
