//! The shapes of request bodies and of what stands in paths and queries, for the `OpenAPI` document.
//!
//! `request` reads them; a test sends what these allow and what they forbid.

use schemars::Schema;
use schemars::json_schema;

/// What a volume or snapshot may be called. Bytes are counted, which a schema cannot say: a name beyond ASCII
/// is described as shorter than it may be.
fn name() -> Schema {
    json_schema!({
        "type": "string",
        "description": "1 to 255 bytes of UTF-8, no control characters, no blank at the beginning or end, no `@` or `/`, \
                        not `.` or `..`, not of the form of a UUID",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f@/]+$",
        "not": { "anyOf": [
            { "enum": [".", ".."] },
            { "pattern": "^\\s" },
            { "pattern": "\\s$" },
            { "pattern": "^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$" },
        ] },
    })
}

fn description() -> Schema {
    json_schema!({
        "type": ["string", "null"],
        "description": "Free text; with the tags at most 3,500 bytes",
        "maxLength": 3500,
    })
}

fn tags() -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "description": "Free labels; with the description at most 3,500 bytes",
        "additionalProperties": { "type": "string" },
    })
}

fn add_property(shape: &mut Schema, name: &str, property: Schema) {
    let properties = shape.ensure_object().get_mut("properties");
    if let Some(properties) = properties.and_then(|found| found.as_object_mut()) {
        properties.insert(name.to_owned(), property.into());
    }
}

/// Adds the size to a shape: in GiB or in bytes, one of both.
fn with_size(mut shape: Schema) -> Schema {
    let gibibytes = json_schema!({
        "type": "number",
        "description": "The size in GiB",
        "exclusiveMinimum": 0,
        "maximum": 1024,
    });
    let bytes = json_schema!({
        "type": "integer",
        "description": "The size in bytes, in place of size_gb; rounded up to a multiple of 4096",
        "minimum": 1,
        "maximum": 281_474_976_710_656_u64,
    });
    add_property(&mut shape, "size_gb", gibibytes);
    add_property(&mut shape, "size_bytes", bytes);
    let choice = serde_json::json!([{ "required": ["size_gb"] }, { "required": ["size_bytes"] }]);
    shape.insert("oneOf".to_owned(), choice);
    shape
}

pub(super) fn create_volume() -> Schema {
    with_size(json_schema!({
        "type": "object",
        "properties": { "name": name(), "description": description(), "tags": tags() },
        "required": ["name"],
        "additionalProperties": false,
        "examples": [{
            "name": "production-db",
            "size_gb": 100,
            "description": "PostgreSQL data volume",
            "tags": { "env": "production", "app": "postgres" },
        }],
    }))
}

pub(super) fn update_volume() -> Schema {
    json_schema!({
        "type": "object",
        "description": "Only what is given is changed",
        "properties": { "name": name(), "description": description(), "tags": tags() },
        "additionalProperties": false,
    })
}

pub(super) fn resize_volume() -> Schema {
    with_size(json_schema!({
        "type": "object",
        "properties": {},
        "additionalProperties": false,
        "examples": [{ "size_gb": 200 }],
    }))
}

pub(super) fn clone_volume() -> Schema {
    json_schema!({
        "type": "object",
        "properties": { "name": name(), "description": description() },
        "required": ["name"],
        "additionalProperties": false,
        "examples": [{ "name": "production-db-clone", "description": "Clone for testing" }],
    })
}

pub(super) fn write() -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "offset": {
                "type": "integer",
                "description": "Where, in bytes",
                "minimum": 0,
                "multipleOf": 4096,
                "maximum": u64::MAX,
            },
            "data": {
                "type": "string",
                "description": "The data in Base64; the rest of its last block keeps what it held",
                "contentEncoding": "base64",
                "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            },
        },
        "required": ["offset", "data"],
        "additionalProperties": false,
        "examples": [{ "offset": 0, "data": "SGVsbG8gV29ybGQh" }],
    })
}

pub(super) fn create_snapshot() -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "name": { "anyOf": [name(), { "type": "null" }] },
            "description": description(),
            "tags": tags(),
        },
        "additionalProperties": false,
        "examples": [{ "name": "daily-backup-2024-01-15", "description": "Automated daily backup" }],
    })
}

pub(super) fn create_snapshot_group() -> Schema {
    let mut shape = create_snapshot();
    let volumes = json_schema!({
        "type": "array",
        "description": "Names or ids of the volumes, each once",
        "items": { "type": "string", "minLength": 1 },
        "minItems": 1,
        "maxItems": crate::array::GROUP_MAX,
        "uniqueItems": true,
    });
    add_property(&mut shape, "volumes", volumes);
    shape.insert("required".to_owned(), serde_json::json!(["volumes"]));
    shape.insert(
        "examples".to_owned(),
        serde_json::json!([{ "volumes": ["db-data", "db-log"], "name": "before-upgrade" }]),
    );
    shape
}

pub(super) fn restore_snapshot() -> Schema {
    json_schema!({
        "type": "object",
        "description": "Without a target a new volume is made",
        "oneOf": [
            {
                "properties": {
                    "target_volume_id": { "type": "null" },
                    "name": { "anyOf": [name(), { "type": "null" }] },
                },
                "additionalProperties": false,
            },
            {
                "properties": {
                    "target_volume_id": {
                        "type": "string",
                        "description": "Name or id of the volume whose data is replaced",
                    },
                    "name": { "type": "null" },
                },
                "required": ["target_volume_id"],
                "additionalProperties": false,
            },
        ],
        "examples": [{ "target_volume_id": null }],
    })
}

pub(super) fn create_mount() -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "mountpoint": {
                "type": "string",
                "description": "The absolute path of an empty directory on the array's machine",
                "pattern": "^/[^\\u0000]*$",
            },
        },
        "required": ["mountpoint"],
        "additionalProperties": false,
        "examples": [{ "mountpoint": "/srv/volumes" }],
    })
}
