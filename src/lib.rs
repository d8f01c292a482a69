//! Processes that must not outlive the program that started them.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod privileges;
pub mod run_with;
mod sys;

pub use run_with::RunWith;
