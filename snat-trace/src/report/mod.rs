//! Evidence as a document to attach to a bug report: the verdict in plain words, what to change, then what it stands on.
//!
//! [`Case`] adds up what a file says, `verdict` puts it into words, `document` into sections; text, markdown and html print the
//! same sections. All of it is pure.

mod attribution;
mod case;
mod changes;
mod chart;
mod document;
mod html;
mod json;
mod markdown;
mod rules;
mod series;
mod text;
mod verdict;

pub use self::case::Case;
pub use self::html::html;
pub use self::json::json;
pub use self::markdown::markdown;
pub use self::text::text;

#[cfg(test)]
mod tests;
