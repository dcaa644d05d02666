//! The `OpenAPI` 3.1 document, made from the table of routes and the types of their answers.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::api::routes;
use crate::api::routes::Kind;
use crate::api::routes::Parameter;
use crate::api::routes::Place;
use crate::api::routes::Route;
use crate::api::types::ProblemDetails;

const ABOUT: &str = "Management of a Sinter virtual flash array. Sizes are bytes unless a name says otherwise, times \
are RFC 3339 in UTC, ids are UUIDs. Wherever a route takes an id of a volume or snapshot, it takes its name, too.";

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = Value::from(generator.subschema_for::<ProblemDetails>());
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::ALL.iter().flat_map(|routes| routes.iter()) {
        let operations = paths.entry(route.path).or_insert_with(|| json!({}));
        operations[route.method] = operation(route, &mut generator, &problem);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sinter",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator, problem: &Value) -> Value {
    let mut parameters: Vec<Value> = path_parameters(route.path);
    parameters.extend(route.parameters.iter().map(parameter));
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "tags": [tag(route.path)],
        "parameters": parameters,
        "responses": responses(route, generator, problem),
    });
    if let Some(shape) = route.body {
        let schema = shape(generator);
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation
}

/// The group of a route: the word behind the version.
fn tag(path: &str) -> &str {
    path.strip_prefix("/api/v1/").and_then(|rest| rest.split('/').next()).unwrap_or("array")
}

fn responses(route: &Route, generator: &mut SchemaGenerator, problem: &Value) -> Value {
    let mut responses = Map::new();
    let refusal = json!({ "application/problem+json": { "schema": problem } });
    for status in problems(route) {
        let about = http_status(status);
        responses.insert(status.to_string(), json!({ "description": about, "content": refusal }));
    }
    responses
        .insert("default".to_owned(), json!({ "description": "What else may go wrong", "content": refusal }));
    if route.status < 300 {
        let mut success = json!({ "description": http_status(route.status) });
        // Several things at once have no place in common, and a cluster and its tokens have none.
        let has_place = route.id != "create_snapshot_group" && !route.path.starts_with("/api/v1/cluster/");
        if route.status == 201 && has_place {
            success["headers"] = json!({ "Location": {
                "description": "The path of what was made",
                "schema": { "type": "string" },
            } });
        }
        if let Some(shape) = route.answer {
            success["content"] = json!({ "application/json": { "schema": shape(generator) } });
        }
        responses.insert(route.status.to_string(), success);
    }
    Value::Object(responses)
}

/// The statuses of errors that a route may answer with because of its form, and its own.
fn problems(route: &Route) -> Vec<u16> {
    let mut problems = vec![400];
    if route.path.contains('{') && route.status < 300 {
        problems.push(404);
    }
    if route.body.is_some() {
        problems.extend([408, 413, 415]);
    }
    if route.parameters.iter().any(|parameter| parameter.name == "If-Match") {
        problems.push(412);
    }
    problems.extend(route.problems);
    problems.sort_unstable();
    problems.dedup();
    problems
}

fn http_status(status: u16) -> &'static str {
    let status = axum::http::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

/// What stands in braces in a path.
fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    names
        .map(|name| {
            let about = match name {
                "mountpoint" => "The directory, as a list gives it; `/` is written `%2F`".to_owned(),
                name => format!("Name or id of the {name}"),
            };
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": about,
                "schema": { "type": "string", "minLength": 1 },
            })
        })
        .collect()
}

fn parameter(parameter: &Parameter) -> Value {
    let schema = match parameter.kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
        Kind::Flag => json!({ "type": "boolean", "default": false }),
        Kind::Number { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
    };
    json!({
        "name": parameter.name,
        "in": match parameter.place {
            Place::Query => "query",
            Place::Header => "header",
        },
        "required": false,
        "description": parameter.about,
        "schema": schema,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let all: Vec<&str> =
            routes::ALL.iter().flat_map(|routes| routes.iter()).map(|route| route.id).collect();
        let names: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn what_is_referred_to_is_there() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut found = 0;
        for rest in text.split("\"$ref\":\"").skip(1) {
            let target = rest.split('"').next().unwrap();
            let name = target.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{target}");
            found += 1;
        }
        assert!(found > 50, "{found}");
        assert!(schemas["Volume"]["properties"]["size_bytes"]["description"].is_string());
    }
}
