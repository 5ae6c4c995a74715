//! What values parameters take, said once for all endpoints: what `query.rs` and the handlers refuse, the description
//! rules out.

use utoipa::{
    Modify,
    openapi::{
        KnownFormat, OpenApi, PathItem, RefOr, Required, SchemaFormat,
        path::{Operation, Parameter, ParameterIn},
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::model::MessageType;

/// Gives parameters their schemas, by name.
pub(super) struct Values;

impl Modify for Values {
    fn modify(&self, openapi: &mut OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            for operation in operations(item) {
                for parameter in operation.parameters.iter_mut().flatten() {
                    describe(parameter);
                }
            }
        }
        let rotate = openapi.paths.paths.get_mut("/api/v1/webhooks/{name}/rotate-secret");
        let body = rotate.and_then(|item| item.post.as_mut()).and_then(|post| post.request_body.as_mut());
        if let Some(body) = body {
            body.required = Some(Required::False);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [item.get.as_mut(), item.post.as_mut()].into_iter().flatten()
}

fn describe(parameter: &mut Parameter) {
    let Some(schema) = schema(&parameter.name, &parameter.parameter_in) else { return };
    parameter.schema = Some(RefOr::T(Schema::Object(schema.build())));
}

/// The values of a parameter; none of those that say it all by their type.
fn schema(name: &str, place: &ParameterIn) -> Option<ObjectBuilder> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let like = |pattern: &str| text().pattern(Some(pattern));
    let one_of = |names: &[&str]| text().enum_values(Some(names.iter().copied()));
    let in_path = *place == ParameterIn::Path;
    Some(match name {
        "since" | "until" => {
            let time = text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
            time.examples(["2026-11-22T03:14:22Z"])
        }
        "room" | "room_id" => like("^![^\\u0000-\\u001f\\u007f-\\u009f]{1,254}$"),
        "network" => like("^[a-z0-9._-]{1,64}$"),
        "network_or_id" => like("^(msg_[0-9a-f]{40}|[a-z0-9._-]{1,64})$"),
        "direction" => one_of(&["in", "out"]),
        "type" => {
            let told = MessageType::ALL.into_iter().filter(|kind| *kind != MessageType::WebhookTest);
            one_of(&told.map(MessageType::as_str).collect::<Vec<_>>())
        }
        "status" => one_of(&["pending", "delivered", "dead"]),
        "relayed" => one_of(&["yes", "no", "unknown"]),
        "cursor" => like("^[A-Za-z0-9_-]+$"),
        "after" => like("^(latest|[A-Za-z0-9_-]+)$"),
        "webhook" => like("^[^\\u0000]{1,255}$"),
        "reason" | "name" => like("^[^\\u0000-\\u001f\\u007f-\\u009f]{1,255}$"),
        "id" if in_path => like("^msg_[0-9a-f]{40}$"),
        "expires" => like("^[0-9]{1,12}$"),
        "signature" => like("^[A-Za-z0-9_-]{43}$"),
        "limit" => number(1).maximum(Some(500)),
        "delivery_id" => number(1).format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64))),
        _ => return None,
    })
}

fn number(least: u16) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least))
}
