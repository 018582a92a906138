//! Events as text and JSON.
