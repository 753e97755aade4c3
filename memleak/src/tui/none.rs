//! What stands for the view in a build without it.

use std::sync::Arc;

use super::{ViewError, ViewLook, ViewRequest};
use crate::report::model::Report;

/// There is none.
#[derive(Debug)]
pub enum NoView {}

/// Says that there is none.
pub fn check() -> Result<(), ViewError> {
    Err(ViewError::NotBuilt)
}

impl NoView {
    /// There is none.
    pub fn open(_: ViewLook) -> Result<Self, ViewError> {
        Err(ViewError::NotBuilt)
    }

    /// Shows a report.
    pub fn show(&self, _: &Arc<Report>) {
        match *self {}
    }

    /// Says something in one line.
    pub fn say(&self, _: String) {
        match *self {}
    }

    /// What the user asks for.
    pub async fn request(&mut self) -> ViewRequest {
        match *self {}
    }

    /// Leaves the terminal.
    pub fn close(self) {
        match self {}
    }
}
