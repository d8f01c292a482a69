//! The driver: what all domains of a manager have in common.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::Domain;
use super::error::DefineError;
use super::inner::Inner;
use super::model::Model;
use super::registry::Registry;

/// How long jobs are waited for, and by how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// For how long a job is waited for, unless the handle says otherwise. 30 s.
    pub wait: Duration,
    /// How many may wait for a domain's jobs, libvirt's `max_queued`; who comes then is refused. Destroy does not wait;
    /// abort, async jobs and their steps do not count. No limit.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(30),
            queue: usize::MAX,
        }
    }
}

pub(super) struct Shared<M: Model> {
    pub(super) config: M::Config,
    pub(super) limits: Limits,
    pub(super) registry: Registry<M>,
    ids: AtomicU64,
}

impl<M: Model> Shared<M> {
    /// A number that no domain of this driver has had.
    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

impl<M: Model> Drop for Shared<M> {
    fn drop(&mut self) {
        for inner in self.registry.all() {
            inner.kill();
            let _last = inner.references.unref();
        }
    }
}

/// What a manager has one of. Its configuration does not change; everything else locks itself, inside this crate.
///
/// Its machines are captives: when the last handle to it is dropped, those that run are killed.
pub struct Driver<M: Model>(Arc<Shared<M>>);

impl<M: Model> Driver<M> {
    /// A driver without domains, with the default limits.
    pub fn new(config: M::Config) -> Self {
        Self::with_limits(config, Limits::default())
    }

    /// A driver without domains.
    pub fn with_limits(config: M::Config, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            config,
            limits,
            registry: Registry::new(),
            ids: AtomicU64::new(1),
        }))
    }

    /// The configuration.
    pub fn config(&self) -> &M::Config {
        &self.0.config
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// Adds a domain that does not run yet, and stays when its machine has ended.
    ///
    /// # Errors
    ///
    /// Its name or its uuid is another's. Nothing has changed.
    pub fn define(
        &self,
        name: impl Into<String>,
        uuid: Uuid,
        definition: M::Definition,
    ) -> Result<Domain<M>, DefineError> {
        self.add(name.into(), uuid, Some(definition))
    }

    /// Adds a transient domain: one that is not found any more when its machine has ended. One that is never started goes
    /// by [`Job::undefine`](super::Job::undefine).
    ///
    /// # Errors
    ///
    /// As [`define`](Self::define).
    pub fn create(&self, name: impl Into<String>, uuid: Uuid) -> Result<Domain<M>, DefineError> {
        self.add(name.into(), uuid, None)
    }

    fn add(
        &self,
        name: String,
        uuid: Uuid,
        definition: Option<M::Definition>,
    ) -> Result<Domain<M>, DefineError> {
        let inner = Arc::new(Inner::new(name, uuid, definition, &self.0));
        self.0.registry.add(&inner)?;
        Ok(self.handle(inner))
    }

    /// Its reference has been taken.
    fn handle(&self, inner: Arc<Inner<M>>) -> Domain<M> {
        Domain::new(inner, self.0.limits.wait)
    }

    /// The domain with this name.
    pub fn find_by_name(&self, name: &str) -> Option<Domain<M>> {
        self.0
            .registry
            .by_name(name)
            .map(|inner| self.handle(inner))
    }

    /// The domain with this uuid.
    pub fn find_by_uuid(&self, uuid: &Uuid) -> Option<Domain<M>> {
        self.0
            .registry
            .by_uuid(uuid)
            .map(|inner| self.handle(inner))
    }

    /// The running domain with this number.
    pub fn find_by_id(&self, id: u64) -> Option<Domain<M>> {
        self.0.registry.by_id(id).map(|inner| self.handle(inner))
    }

    /// All domains, in no order.
    pub fn domains(&self) -> Vec<Domain<M>> {
        let all = self.0.registry.all();
        all.into_iter().map(|inner| self.handle(inner)).collect()
    }
}

impl<M: Model> Clone for Driver<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Model> fmt::Debug for Driver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}
