//! Processes that must not outlive the program that started them.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod async_teardown;

mod sys;
