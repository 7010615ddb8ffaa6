//! What changes for a route while it has much to do.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::units;

/// Levels of load, and what changes at each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Levels {
    /// What is measured.
    pub by: LoadMeasure,
    /// The levels, at least one, each beginning above the one before; below the first one nothing
    /// changes.
    pub table: Vec<Level>,
    /// A level ends when the load is below its beginning by this share, 0.0 to 0.9,
    #[serde(serialize_with = "units::percent")]
    pub hysteresis: f64,
    /// and has been for so long.
    #[serde(serialize_with = "units::duration")]
    pub hold: Duration,
}

/// One level of load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Level {
    /// The least load, above 0.
    pub from: f64,
    /// Multiplies the first-byte and gap deadlines; 0.01 to 100.0.
    pub scale: f64,
    /// Takes the place of the first-byte deadline.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_duration")]
    pub first_byte: Option<Duration>,
    /// Takes the place of the total deadline.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_duration")]
    pub total: Option<Duration>,
    /// What becomes of a request.
    pub action: LevelAction,
}

/// What load is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadMeasure {
    /// Requests of the route that arrive in a second.
    RequestsPerSecond,
    /// Requests of the route that have begun and not ended.
    InFlight,
    /// Requests that wait inside the engines of the route, as these report; the mean of those that
    /// do.
    Queue,
}

/// What becomes of a request at a level of load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LevelAction {
    /// It is served.
    #[default]
    Normal,
    /// A stored answer is preferred; without one it is served.
    PreferStored,
    /// It gets a stored answer or none.
    OnlyStored,
    /// It is turned away with 503.
    Shed,
}

impl LevelAction {
    /// Every action.
    pub const ALL: [Self; 4] = [Self::Normal, Self::PreferStored, Self::OnlyStored, Self::Shed];

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::PreferStored => "prefer_stored",
            Self::OnlyStored => "only_stored",
            Self::Shed => "shed",
        }
    }
}

impl LoadMeasure {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests_per_second",
            Self::InFlight => "in_flight",
            Self::Queue => "queue",
        }
    }
}

fn some_duration<S: Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    units::duration_or_off(value, out)
}
