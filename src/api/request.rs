//! Reading requests: JSON bodies and query strings into checked values.
//!
//! Every wrong field is named, not just the first; unknown ones are wrong too, because a misspelt
//! `description` that is silently dropped helps nobody. Nothing here touches the array, so a bad
//! request has changed nothing.

use std::collections::BTreeMap;

use serde_json::Map;
use serde_json::Value;

use crate::api::problem::Problem;
use crate::api::types::AddPeer;
use crate::api::types::CloneVolume;
use crate::api::types::CreateMount;
use crate::api::types::CreateSnapshot;
use crate::api::types::CreateSnapshotGroup;
use crate::api::types::CreateVolume;
use crate::api::types::Failover;
use crate::api::types::FieldError;
use crate::api::types::Heartbeat;
use crate::api::types::InitCluster;
use crate::api::types::JoinCluster;
use crate::api::types::NewToken;
use crate::api::types::Promote;
use crate::api::types::ResizeVolume;
use crate::api::types::RestoreSnapshot;
use crate::api::types::StartCluster;
use crate::api::types::TokenRole;
use crate::api::types::UpdateVolume;

/// Largest `size_gb`, in GiB.
const SIZE_GB_MAX: f64 = 1024.0;

/// Largest `size_bytes`: 256 TiB.
pub const SIZE_BYTES_MAX: u64 = 256 << 40;

/// Reads the body of `POST /volumes`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn create_volume(body: &[u8]) -> Result<CreateVolume, Problem> {
    let mut fields = Fields::parse(body)?;
    let name = fields.required("name", text);
    let size_bytes = fields.size();
    let description = fields.optional("description", text);
    let tags = fields.optional("tags", text_map);
    fields.finish()?;
    let (Some(name), Some(size_bytes)) = (name, size_bytes) else {
        return Err(Problem::invalid("name and a size are needed"));
    };
    Ok(CreateVolume {
        name,
        size_bytes,
        description: description.unwrap_or_default(),
        tags: tags.unwrap_or_default(),
    })
}

/// Reads the body of `PUT /volumes/{id}`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn update_volume(body: &[u8]) -> Result<UpdateVolume, Problem> {
    let mut fields = Fields::parse(body)?;
    let update = UpdateVolume {
        name: fields.optional("name", text),
        description: fields.optional("description", text),
        tags: fields.optional("tags", text_map),
    };
    fields.finish()?;
    Ok(update)
}

/// Reads the body of `POST /volumes/{id}/resize`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn resize_volume(body: &[u8]) -> Result<ResizeVolume, Problem> {
    let mut fields = Fields::parse(body)?;
    let size_bytes = fields.size();
    fields.finish()?;
    size_bytes
        .map(|size_bytes| ResizeVolume { size_bytes })
        .ok_or_else(|| Problem::invalid("a size is needed"))
}

/// Reads the body of `POST .../clone`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn clone_volume(body: &[u8]) -> Result<CloneVolume, Problem> {
    let mut fields = Fields::parse(body)?;
    let name = fields.required("name", text);
    let description = fields.optional("description", text);
    fields.finish()?;
    let name = name.ok_or_else(|| Problem::invalid("a name is needed"))?;
    Ok(CloneVolume { name, description })
}

/// Reads the body of `POST /volumes/{id}/snapshots`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn create_snapshot(body: &[u8]) -> Result<CreateSnapshot, Problem> {
    let mut fields = Fields::parse(body)?;
    let snapshot = fields.snapshot();
    fields.finish()?;
    Ok(snapshot)
}

/// Reads the body of `POST /snapshots`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn create_snapshot_group(body: &[u8]) -> Result<CreateSnapshotGroup, Problem> {
    let mut fields = Fields::parse(body)?;
    let volumes = fields.required("volumes", texts);
    let snapshot = fields.snapshot();
    fields.finish()?;
    let volumes = volumes.ok_or_else(|| Problem::invalid("volumes are needed"))?;
    Ok(CreateSnapshotGroup { volumes, snapshot })
}

/// Reads the body of `POST .../restore`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn restore_snapshot(body: &[u8]) -> Result<RestoreSnapshot, Problem> {
    let mut fields = Fields::parse(body)?;
    let target_volume_id = fields.optional("target_volume_id", text);
    let name = fields.optional("name", text);
    if target_volume_id.is_some() && name.is_some() {
        fields.wrong("name", "is for a new volume, and target_volume_id names an existing one");
    }
    fields.finish()?;
    Ok(RestoreSnapshot { target_volume_id, name })
}

/// Reads the body of `POST /cluster/peers`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn add_peer(body: &[u8]) -> Result<AddPeer, Problem> {
    let mut fields = Fields::parse(body)?;
    let node_id = fields.required("node_id", node_name);
    let url = fields.required("url", http_url);
    fields.finish()?;
    match (node_id, url) {
        (Some(node_id), Some(url)) => Ok(AddPeer { node_id, url }),
        _ => Err(Problem::invalid("node_id and url are needed")),
    }
}

/// Reads the body of `POST /cluster/init`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn init_cluster(body: &[u8]) -> Result<InitCluster, Problem> {
    let mut fields = Fields::parse(body)?;
    let listen = fields.optional("listen", text);
    fields.finish()?;
    Ok(InitCluster { listen })
}

/// Reads the body of `POST /cluster/tokens`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn new_token(body: &[u8]) -> Result<NewToken, Problem> {
    let mut fields = Fields::parse(body)?;
    let role = fields.required("role", token_role);
    fields.finish()?;
    role.map(|role| NewToken { role }).ok_or_else(|| Problem::invalid("role is needed"))
}

/// Reads the body of `POST /cluster/failover`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn failover(body: &[u8]) -> Result<Failover, Problem> {
    let mut fields = Fields::parse(body)?;
    let target_node = fields.optional("target_node", text);
    fields.finish()?;
    Ok(Failover { target_node })
}

/// Reads the body of `POST /cluster/promote`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn promote(body: &[u8]) -> Result<Promote, Problem> {
    let mut fields = Fields::parse(body)?;
    let force = fields.optional("force", flag);
    fields.finish()?;
    Ok(Promote { force: force.unwrap_or(false) })
}

/// Reads the body of `POST /cluster/start`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn start_cluster(body: &[u8]) -> Result<StartCluster, Problem> {
    let mut fields = Fields::parse(body)?;
    let without = fields.required("without", texts);
    fields.finish()?;
    match without {
        Some(without) if !without.is_empty() => Ok(StartCluster { without }),
        _ => Err(Problem::field("without", "name the nodes that never return")),
    }
}

/// Reads the body of `POST /cluster/join`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn join_cluster(body: &[u8]) -> Result<JoinCluster, Problem> {
    let mut fields = Fields::parse(body)?;
    let token = fields.required("token", text);
    let discard_local_data = fields.optional("discard_local_data", flag).unwrap_or(false);
    fields.finish()?;
    let token = token.ok_or_else(|| Problem::invalid("a token is needed"))?;
    Ok(JoinCluster { token, discard_local_data })
}

/// Reads the body of `POST /cluster/heartbeat`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn heartbeat(body: &[u8]) -> Result<Heartbeat, Problem> {
    let mut fields = Fields::parse(body)?;
    let source_node = fields.required("source_node", text);
    let timestamp = fields.required("timestamp", number);
    let current_primary = fields.optional("current_primary", text);
    fields.finish()?;
    match (source_node, timestamp) {
        (Some(source_node), Some(timestamp)) => Ok(Heartbeat { source_node, timestamp, current_primary }),
        _ => Err(Problem::invalid("source_node and timestamp are needed")),
    }
}

/// The body of `POST /volumes/{id}/write`: an offset and data still in Base64.
#[derive(Debug)]
pub struct WriteRequest {
    /// Byte offset; not yet checked for alignment.
    pub offset: u64,
    /// Base64 text.
    pub data: String,
}

/// Reads the body of `POST /volumes/{id}/write`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn write(body: &[u8]) -> Result<WriteRequest, Problem> {
    let mut fields = Fields::parse(body)?;
    let offset = fields.required("offset", whole_number);
    let data = fields.required("data", text);
    fields.finish()?;
    match (offset, data) {
        (Some(offset), Some(data)) => Ok(WriteRequest { offset, data }),
        _ => Err(Problem::invalid("offset and data are needed")),
    }
}

/// Reads the body of `POST /mounts`.
///
/// # Errors
/// A 400 that names every wrong field.
pub fn create_mount(body: &[u8]) -> Result<CreateMount, Problem> {
    let mut fields = Fields::parse(body)?;
    let mountpoint = fields.required("mountpoint", text);
    fields.finish()?;
    mountpoint
        .map(|mountpoint| CreateMount { mountpoint })
        .ok_or_else(|| Problem::invalid("mountpoint is needed"))
}

/// The members of a JSON object, taken out one by one.
struct Fields {
    members: Map<String, Value>,
    errors: Vec<FieldError>,
}

type Reader<T> = fn(Value) -> Result<T, &'static str>;

impl Fields {
    fn parse(body: &[u8]) -> Result<Fields, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(members) => Ok(Fields { members, errors: Vec::new() }),
            _ => Err(Problem::invalid("the body is not a JSON object")),
        }
    }

    fn wrong(&mut self, field: &str, detail: &str) {
        self.errors.push(FieldError { field: field.to_owned(), detail: detail.to_owned() });
    }

    /// A member that may be absent or `null`.
    fn optional<T>(&mut self, field: &str, read: Reader<T>) -> Option<T> {
        let value = self.members.remove(field).filter(|value| !value.is_null())?;
        read(value).map_err(|detail| self.wrong(field, detail)).ok()
    }

    fn required<T>(&mut self, field: &str, read: Reader<T>) -> Option<T> {
        let Some(value) = self.members.remove(field) else {
            self.wrong(field, "is needed");
            return None;
        };
        read(value).map_err(|detail| self.wrong(field, detail)).ok()
    }

    /// The size in bytes, given as `size_gb` (GiB, may be fractional) or as `size_bytes`.
    fn size(&mut self) -> Option<u64> {
        let has_gb = self.members.get("size_gb").is_some_and(|value| !value.is_null());
        let has_bytes = self.members.get("size_bytes").is_some_and(|value| !value.is_null());
        let gb = self.optional("size_gb", gibibytes);
        let bytes = self.optional("size_bytes", size_bytes);
        match (has_gb, has_bytes) {
            (false, false) => self.wrong("size_gb", "is needed (or size_bytes)"),
            (true, true) => self.wrong("size_bytes", "give size_gb or size_bytes, not both"),
            _ => {}
        }
        gb.or(bytes)
    }

    /// Name, description and tags of a new snapshot.
    fn snapshot(&mut self) -> CreateSnapshot {
        CreateSnapshot {
            name: self.optional("name", text),
            description: self.optional("description", text).unwrap_or_default(),
            tags: self.optional("tags", text_map).unwrap_or_default(),
        }
    }

    /// What nobody has taken is unknown.
    fn finish(mut self) -> Result<(), Problem> {
        let unknown: Vec<String> = self.members.keys().take(8).cloned().collect();
        for field in unknown {
            self.wrong(&field, "is not a field of this request");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields(self.errors)) }
    }
}

fn text(value: Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("must be a string"),
    }
}

fn flag(value: Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("must be true or false")
}

fn token_role(value: Value) -> Result<TokenRole, &'static str> {
    serde_json::from_value(value).map_err(|_| "must be data, witness or client")
}

fn text_map(value: Value) -> Result<BTreeMap<String, String>, &'static str> {
    let Value::Object(members) = value else { return Err("must be an object of strings") };
    members
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            _ => Err("must be an object of strings"),
        })
        .collect()
}

fn texts(value: Value) -> Result<Vec<String>, &'static str> {
    let Value::Array(values) = value else { return Err("must be an array of strings") };
    values.into_iter().map(|value| text(value).map_err(|_| "must be an array of strings")).collect()
}

fn node_name(value: Value) -> Result<String, &'static str> {
    let name = text(value)?;
    if (1..=255).contains(&name.chars().count()) { Ok(name) } else { Err("must have 1 to 255 characters") }
}

fn http_url(value: Value) -> Result<String, &'static str> {
    let url = text(value)?;
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    if rest.is_some_and(|rest| !rest.is_empty()) {
        Ok(url)
    } else {
        Err("must begin with http:// or https://")
    }
}

fn number(value: Value) -> Result<f64, &'static str> {
    value.as_f64().ok_or("must be a number")
}

fn whole_number(value: Value) -> Result<u64, &'static str> {
    whole(&value).ok_or("must be a whole number of 0 or more")
}

/// A whole number, also one that is written with a fraction of zero.
fn whole(value: &Value) -> Option<u64> {
    /// Beyond it not every whole number is a float.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole and between 0 and 2^53, as just checked"
    )]
    let of_float =
        |number: f64| (number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number)).then_some(number as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(of_float))
}

fn size_bytes(value: Value) -> Result<u64, &'static str> {
    whole(&value)
        .filter(|bytes| (1..=SIZE_BYTES_MAX).contains(bytes))
        .ok_or("must be a whole number of bytes above 0 and at most 256 TiB")
}

fn gibibytes(value: Value) -> Result<u64, &'static str> {
    let gibibytes = value.as_f64().filter(|size| *size > 0.0 && *size <= SIZE_GB_MAX);
    let gibibytes = gibibytes.ok_or("must be a number above 0 and at most 1024")?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^40, as just checked"
    )]
    let bytes = (gibibytes * f64::from(1u32 << 30)).ceil() as u64;
    Ok(bytes)
}

/// The parameters of a query string, taken out one by one.
#[derive(Debug)]
pub struct Query {
    parameters: BTreeMap<String, String>,
}

impl Query {
    /// Takes what axum has parted.
    ///
    /// # Errors
    /// A 400 for a parameter that is given twice.
    pub fn new(pairs: Vec<(String, String)>) -> Result<Query, Problem> {
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            if parameters.insert(name.clone(), value).is_some() {
                return Err(Problem::field(&name, format!("{name} is given twice")));
            }
        }
        Ok(Query { parameters })
    }

    /// A text, if it is given.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.parameters.remove(name)
    }

    /// A whole number within bounds, if it is given.
    ///
    /// # Errors
    /// A 400 that names it.
    pub fn number(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.parameters.remove(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ if max == u64::MAX => {
                Err(Problem::field(name, format!("{name} must be a whole number of {min} or more")))
            }
            _ => Err(Problem::field(name, format!("{name} must be a whole number from {min} to {max}"))),
        }
    }

    /// `true` or `false`; absent is `false`.
    ///
    /// # Errors
    /// A 400 that names it.
    pub fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.parameters.remove(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(_) => Err(Problem::field(name, format!("{name} must be true or false"))),
        }
    }

    /// What nobody has taken is unknown.
    ///
    /// # Errors
    /// A 400 that names it.
    pub fn finish(self) -> Result<(), Problem> {
        match self.parameters.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Problem::field(&name, format!("there is no parameter {name} here"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    #[test]
    fn the_documented_request_is_read() {
        let create = create_volume(
            br#"{"name": "production-db", "size_gb": 100, "description": "d", "tags": {"env": "production"}}"#,
        )
        .unwrap();
        assert_eq!(create.size_bytes, 107_374_182_400);
        assert_eq!(create.tags["env"], "production");
        let small = create_volume(br#"{"name": "n", "size_gb": 0.5, "description": null}"#).unwrap();
        assert_eq!(small.size_bytes, 1 << 29);
        assert_eq!(create_volume(br#"{"name": "n", "size_bytes": 4097}"#).unwrap().size_bytes, 4097);
        assert_eq!(create_volume(br#"{"name": "n", "size_bytes": 4.096e3}"#).unwrap().size_bytes, 4096);
        assert!(write(br#"{"offset": 18446744073709551615, "data": ""}"#).is_ok());
        assert!(write(br#"{"offset": 1.8446744073709552e19, "data": ""}"#).is_err());
        assert!(write(br#"{"offset": -0.5, "data": ""}"#).is_err());
    }

    #[test]
    fn every_bad_request_is_a_400() {
        for body in [
            "",
            "{",
            "[]",
            "null",
            r#"{"name": "n"}"#,
            r#"{"size_gb": 1}"#,
            r#"{"name": 1, "size_gb": 1}"#,
            r#"{"name": null, "size_gb": 1}"#,
            r#"{"name": "n", "size_gb": 0}"#,
            r#"{"name": "n", "size_gb": -1}"#,
            r#"{"name": "n", "size_gb": 1024.1}"#,
            r#"{"name": "n", "size_gb": 1e999}"#,
            r#"{"name": "n", "size_gb": "1"}"#,
            r#"{"name": "n", "size_bytes": 1.5}"#,
            r#"{"name": "n", "size_bytes": 281474976710657}"#,
            r#"{"name": "n", "size_gb": 1, "size_bytes": 1}"#,
            r#"{"name": "n", "size_gb": 1, "tags": {"a": 1}}"#,
            r#"{"name": "n", "size_gb": 1, "tags": []}"#,
            r#"{"name": "n", "size_gb": 1, "descripton": "d"}"#,
        ] {
            let problem = create_volume(body.as_bytes()).expect_err(body);
            assert_eq!(problem.into_response().status(), 400, "{body}");
        }
    }
}
