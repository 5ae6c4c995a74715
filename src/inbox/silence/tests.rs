//! What the worker notices, with a hand-held clock, on both databases.

use std::{sync::Arc, time::Duration};
