//! All routes in one table, from which the router and the `OpenAPI` document are both made: a route that is
//! served is documented, and a route that is documented is served.

use std::sync::Arc;

use axum::routing::MethodRouter;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;
use axum::routing::put;
use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;

use crate::api::Service;
use crate::api::analytics;
use crate::api::cluster;
use crate::api::data;
use crate::api::figures;
use crate::api::mounts;
use crate::api::page;
use crate::api::scrub;
use crate::api::shapes;
use crate::api::snapshots;
use crate::api::types;
use crate::api::volumes;
use crate::api::whole;

mod cluster_table;

/// Makes the schema of a body.
pub(super) type Shape = fn(&mut SchemaGenerator) -> Schema;

/// One route with one method.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// Names the operation in generated clients.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: Option<Shape>,
    /// The status of success.
    pub(super) status: u16,
    pub(super) answer: Option<Shape>,
    /// Further statuses of errors, beside those that every route of this form has.
    pub(super) problems: &'static [u16],
    pub(super) handler: fn() -> MethodRouter<Arc<Service>>,
}

/// What may stand in the query or in a header.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) kind: Kind,
    pub(super) about: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Query,
    Header,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// Text that a regular expression matches.
    Pattern(&'static str),
    Flag,
    /// A whole number within bounds.
    Number {
        min: u64,
        max: u64,
    },
}

/// The schema of a type, named and referred to.
fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A route that is read, with an answer of a type.
const fn reading(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    answer: Shape,
    handler: fn() -> MethodRouter<Arc<Service>>,
) -> Route {
    Route {
        method: "get",
        path,
        id,
        summary,
        parameters: &[],
        body: None,
        status: 200,
        answer: Some(answer),
        problems: &[],
        handler,
    }
}

/// A route that is posted to, with a body and an answer of a type.
const fn posting(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    body: Shape,
    answer: Shape,
    handler: fn() -> MethodRouter<Arc<Service>>,
) -> Route {
    Route {
        method: "post",
        path,
        id,
        summary,
        parameters: &[],
        body: Some(body),
        status: 200,
        answer: Some(answer),
        problems: CHANGING,
        handler,
    }
}

/// What may keep a change from being made.
const CHANGING: &[u16] = &[409, 507];

const LIST: &[Parameter] = &[
    Parameter {
        name: "limit",
        place: Place::Query,
        kind: Kind::Number { min: 1, max: page::PAGE_MAX },
        about: "Most entries of the answer; without it the list is whole",
    },
    Parameter {
        name: "cursor",
        place: Place::Query,
        kind: Kind::Pattern("^[A-Za-z0-9_-]+$"),
        about: "`next_cursor` of the page before",
    },
];

const FORCE: Parameter = Parameter {
    name: "force",
    place: Place::Query,
    kind: Kind::Flag,
    about: "Also while a client is connected",
};

const LAZY: Parameter = Parameter {
    name: "lazy",
    place: Place::Query,
    kind: Kind::Flag,
    about: "Also while files are open in it: it is hidden at once, and ends with the last of them",
};

const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    place: Place::Header,
    kind: Kind::Pattern(r#"^(\*|(W/)?"[^"]*"( *, *(W/)?"[^"]*")*)$"#),
    about: "Entity tags, as `ETag` gave them: nothing is changed unless the volume or snapshot \
            still has one of them (where a snapshot is restored onto a volume, that volume)",
};

const READ: &[Parameter] = &[
    Parameter {
        name: "offset",
        place: Place::Query,
        kind: Kind::Number { min: 0, max: u64::MAX },
        about: "Where, in bytes; without `length` a multiple of 4096",
    },
    Parameter {
        name: "length",
        place: Place::Query,
        kind: Kind::Number { min: 0, max: data::READ_BYTES_MAX },
        about: "How many bytes; without it the block at `offset` without its trailing zero bytes",
    },
];

const DIFF: &[Parameter] = &[
    Parameter {
        name: "to",
        place: Place::Query,
        kind: Kind::Text,
        about: "What is compared with the snapshot: a volume by name or id, or VOLUME@SNAPSHOT; without it the \
                volume that the snapshot was taken of",
    },
    Parameter {
        name: "offset",
        place: Place::Query,
        kind: Kind::Number { min: 0, max: u64::MAX },
        about: "Where to begin, in bytes: `next_offset` of the answer before",
    },
    Parameter {
        name: "limit",
        place: Place::Query,
        kind: Kind::Number { min: 1, max: page::PAGE_MAX },
        about: "Most ranges of the answer",
    },
];

/// The tables of all routes.
pub(super) static ALL: &[&[Route]] =
    &[WHOLE, VOLUMES, SNAPSHOTS, MOUNTS, SCRUB, FIGURES, cluster_table::ALL, ANALYTICS];

const WHOLE: &[Route] = &[
    reading("/", "about", "What this is", shape::<types::About>, || get(whole::about)),
    reading("/health", "health", "Whether all is well", shape::<types::Health>, || get(whole::health)),
    reading(
        "/api/v1/arrays",
        "list_arrays",
        "The array and where it serves volumes",
        shape::<types::ArrayList>,
        || get(whole::arrays),
    ),
    reading(
        "/api/v1/status",
        "status",
        "One consistent moment, what is wrong first",
        shape::<types::Status>,
        || get(whole::status),
    ),
];

const VOLUMES: &[Route] = &[
    Route {
        parameters: LIST,
        ..reading("/api/v1/volumes", "list_volumes", "All volumes", shape::<types::VolumeList>, || {
            get(volumes::list)
        })
    },
    Route {
        status: 201,
        ..posting(
            "/api/v1/volumes",
            "create_volume",
            "Make a volume; it takes space only as it is written",
            |_| shapes::create_volume(),
            shape::<types::Volume>,
            || post(volumes::create),
        )
    },
    reading("/api/v1/volumes/{volume}", "show_volume", "One volume", shape::<types::Volume>, || {
        get(volumes::show)
    }),
    Route {
        method: "put",
        parameters: &[IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}",
            "update_volume",
            "Change name, description or tags",
            |_| shapes::update_volume(),
            shape::<types::Volume>,
            || put(volumes::update),
        )
    },
    Route {
        method: "delete",
        path: "/api/v1/volumes/{volume}",
        id: "delete_volume",
        summary: "Delete a volume; its snapshots and clones stay",
        parameters: &[FORCE, IF_MATCH],
        body: None,
        status: 204,
        answer: None,
        problems: &[409],
        handler: || delete(volumes::delete),
    },
    Route {
        parameters: &[IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}/resize",
            "resize_volume",
            "Make a volume larger",
            |_| shapes::resize_volume(),
            shape::<types::Volume>,
            || post(volumes::resize),
        )
    },
    Route {
        parameters: &[IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}/clone",
            "clone_volume",
            "Make a volume that begins as what this one holds",
            |_| shapes::clone_volume(),
            shape::<types::Volume>,
            || post(volumes::clone),
        )
    },
    Route {
        parameters: &[IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}/write",
            "write",
            "Write data at a multiple of 4096; durable when answered. The body is at most 64 MiB, which is 48 MiB of data \
             in Base64",
            |_| shapes::write(),
            shape::<types::WriteAnswer>,
            || post(data::write),
        )
    },
    Route {
        parameters: READ,
        ..reading("/api/v1/volumes/{volume}/read", "read", "Read data", shape::<types::ReadAnswer>, || {
            get(data::read)
        })
    },
];

const MOUNTS: &[Route] = &[
    Route {
        parameters: LIST,
        ..reading(
            "/api/v1/mounts",
            "list_mounts",
            "All directories in which volumes and snapshots are files",
            shape::<types::MountList>,
            || get(mounts::list),
        )
    },
    Route {
        status: 201,
        problems: &[404, 409, 501],
        ..posting(
            "/api/v1/mounts",
            "mount",
            "Mount the volumes and snapshots on an empty directory of the array's machine",
            |_| shapes::create_mount(),
            shape::<types::Mount>,
            || post(mounts::create),
        )
    },
    Route {
        method: "delete",
        path: "/api/v1/mounts/{mountpoint}",
        id: "unmount",
        summary: "Take a mount away",
        parameters: &[LAZY],
        body: None,
        status: 204,
        answer: None,
        problems: &[409, 501],
        handler: || delete(mounts::remove),
    },
];

const SCRUB: &[Route] = &[
    reading(
        "/api/v1/scrub",
        "show_scrub",
        "How far the newest scrub has come",
        shape::<scrub::Scrub>,
        || get(scrub::show),
    ),
    Route {
        body: None,
        problems: &[],
        ..posting(
            "/api/v1/scrub",
            "start_scrub",
            "Read and verify all that is live; goes on in the background",
            shape::<scrub::Scrub>,
            shape::<scrub::Scrub>,
            || post(scrub::start),
        )
    },
    Route {
        method: "delete",
        path: "/api/v1/scrub",
        id: "stop_scrub",
        summary: "Stop the scrub under way",
        parameters: &[],
        body: None,
        status: 200,
        answer: Some(shape::<scrub::Scrub>),
        problems: &[],
        handler: || delete(scrub::stop),
    },
];

const SNAPSHOTS: &[Route] = &[
    Route {
        parameters: LIST,
        ..reading(
            "/api/v1/snapshots",
            "list_snapshots",
            "All snapshots, also of volumes that are gone",
            shape::<types::SnapshotList>,
            || get(snapshots::list),
        )
    },
    Route {
        status: 201,
        problems: &[404, 409, 507],
        ..posting(
            "/api/v1/snapshots",
            "create_snapshot_group",
            "Take snapshots of several volumes at one moment",
            |_| shapes::create_snapshot_group(),
            shape::<types::SnapshotGroup>,
            || post(snapshots::create_group),
        )
    },
    Route {
        parameters: LIST,
        ..reading(
            "/api/v1/volumes/{volume}/snapshots",
            "list_volume_snapshots",
            "The snapshots of a volume, living or gone",
            shape::<types::SnapshotList>,
            || get(snapshots::list_of_volume),
        )
    },
    Route {
        status: 201,
        ..posting(
            "/api/v1/volumes/{volume}/snapshots",
            "create_snapshot",
            "Take a snapshot: the same time for any size",
            |_| shapes::create_snapshot(),
            shape::<types::Snapshot>,
            || post(snapshots::create),
        )
    },
    reading(
        "/api/v1/volumes/{volume}/snapshots/{snapshot}",
        "show_snapshot",
        "One snapshot",
        shape::<types::Snapshot>,
        || get(snapshots::show),
    ),
    Route {
        method: "delete",
        path: "/api/v1/volumes/{volume}/snapshots/{snapshot}",
        id: "delete_snapshot",
        summary: "Delete a snapshot; its space comes back in the background",
        parameters: &[FORCE, IF_MATCH],
        body: None,
        status: 204,
        answer: None,
        problems: &[409],
        handler: || delete(snapshots::delete),
    },
    Route {
        parameters: &[FORCE, IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}/snapshots/{snapshot}/restore",
            "restore_snapshot",
            "Make a volume hold what the snapshot holds",
            |_| shapes::restore_snapshot(),
            shape::<types::Volume>,
            || post(snapshots::restore),
        )
    },
    Route {
        parameters: &[IF_MATCH],
        ..posting(
            "/api/v1/volumes/{volume}/snapshots/{snapshot}/clone",
            "clone_snapshot",
            "Make a volume that begins as the snapshot",
            |_| shapes::clone_volume(),
            shape::<types::Volume>,
            || post(snapshots::clone),
        )
    },
    Route {
        parameters: DIFF,
        ..reading(
            "/api/v1/volumes/{volume}/snapshots/{snapshot}/diff",
            "diff_snapshot",
            "What has changed since the snapshot",
            shape::<types::SnapshotDiff>,
            || get(snapshots::diff),
        )
    },
];

const FIGURES: &[Route] = &[
    reading("/api/v1/metrics", "metrics", "All figures", shape::<types::AllMetrics>, || get(figures::all)),
    reading(
        "/api/v1/metrics/reduction",
        "reduction_metrics",
        "How far data is reduced",
        shape::<types::ReductionMetrics>,
        || get(figures::reduction),
    ),
    reading(
        "/api/v1/metrics/flash",
        "flash_metrics",
        "Space and wear, from the real log",
        shape::<types::FlashMetrics>,
        || get(figures::flash),
    ),
    reading(
        "/api/v1/metrics/volumes",
        "volume_metrics",
        "Volumes and snapshots, counted",
        shape::<types::VolumeMetrics>,
        || get(figures::volumes),
    ),
    reading(
        "/api/v1/metrics/replication",
        "replication_metrics",
        "How replication goes",
        shape::<types::ReplicationMetrics>,
        || get(cluster::metrics),
    ),
];

/// While clustering is off, none of the changes can succeed: they have no answer but an error.
const ANALYTICS: &[Route] = &[
    reading(
        "/api/v1/analytics/capacity/forecast",
        "capacity_forecast",
        "How full the pool will be",
        shape::<types::CapacityForecast>,
        || get(analytics::forecast),
    ),
    reading(
        "/api/v1/analytics/health",
        "health_analysis",
        "How worn the segments are, and for how long they will do",
        shape::<types::HealthAnalysis>,
        || get(analytics::health),
    ),
    reading(
        "/api/v1/analytics/temperature/{volume}",
        "volume_temperature",
        "How recently a volume was used",
        shape::<types::VolumeTemperature>,
        || get(analytics::temperature),
    ),
    reading(
        "/api/v1/analytics/tiering/recommendations",
        "tiering_recommendations",
        "Where each volume would be kept best",
        shape::<types::TieringRecommendations>,
        || get(analytics::tiering),
    ),
];
