//! Finds domains by id, name and uuid, without waiting for who adds or removes one.
//!
//! Each index is a number of published maps: a reader loads one and looks, a writer replaces it. Writers take turns. A
//! domain that is being added may be found by its name a moment before it is found by its uuid.
//!
//! What a reader finds in a map that has just been replaced may be removed already. It is had only if somebody has a
//! reference to it still ([`RefCount::try_ref`](crate::sync::RefCount::try_ref)): never one that has ended.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::error::DefineError;
use super::inner::Inner;
use super::model::Model;
use crate::sync::Published;

/// A writer copies one in so many parts of an index.
const PARTS: usize = 64;

type Part<K, M> = Published<HashMap<K, Arc<Inner<M>>>>;

struct Index<K, M: Model> {
    parts: Box<[Part<K, M>]>,
    hasher: RandomState,
}

impl<K: Hash + Eq + Clone, M: Model> Index<K, M> {
    fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Published::new(HashMap::new())).collect(),
            hasher: RandomState::new(),
        }
    }

    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> &Part<K, M> {
        let hash = self.hasher.hash_one(key) % PARTS as u64;
        &self.parts[usize::try_from(hash).unwrap_or(0)]
    }

    /// With a reference taken.
    fn find<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Arc<Inner<M>>>
    where
        K: Borrow<Q>,
    {
        let part = self.part(key).load();
        let inner = part.get(key)?;
        inner.references.try_ref().then(|| inner.clone())
    }

    fn has(&self, key: &K) -> bool {
        self.part(key).load().contains_key(key)
    }

    fn insert(&self, key: &K, inner: &Arc<Inner<M>>) {
        self.part(key).update(|part| {
            let mut part = part.clone();
            part.insert(key.clone(), inner.clone());
            part
        });
    }

    fn remove(&self, key: &K) {
        self.part(key).update(|part| {
            let mut part = part.clone();
            part.remove(key);
            part
        });
    }

    /// With references taken.
    fn all(&self) -> Vec<Arc<Inner<M>>> {
        let alive = |inner: &&Arc<Inner<M>>| inner.references.try_ref();
        self.parts
            .iter()
            .flat_map(|part| {
                let part = part.load();
                part.values().filter(alive).cloned().collect::<Vec<_>>()
            })
            .collect()
    }
}

pub(super) struct Registry<M: Model> {
    writer: Mutex<()>,
    names: Index<String, M>,
    uuids: Index<Uuid, M>,
    ids: Index<u64, M>,
}

impl<M: Model> Registry<M> {
    pub(super) fn new() -> Self {
        Self {
            writer: Mutex::new(()),
            names: Index::new(),
            uuids: Index::new(),
            ids: Index::new(),
        }
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, whose first reference is the registry's; a second is taken.
    pub(super) fn add(&self, inner: &Arc<Inner<M>>) -> Result<(), DefineError> {
        let _turn = self.write();
        if self.names.has(&inner.name) {
            return Err(DefineError::NameTaken(inner.name.clone()));
        }
        if self.uuids.has(&inner.uuid) {
            return Err(DefineError::UuidTaken(inner.uuid));
        }
        let _taken = inner.references.try_ref();
        self.uuids.insert(&inner.uuid, inner);
        self.names.insert(&inner.name, inner);
        Ok(())
    }

    pub(super) fn add_id(&self, id: u64, inner: &Arc<Inner<M>>) {
        let _turn = self.write();
        self.ids.insert(&id, inner);
    }

    pub(super) fn remove_id(&self, id: u64) {
        let _turn = self.write();
        self.ids.remove(&id);
    }

    /// Removes this one; false if it is not there, any more.
    pub(super) fn remove(&self, inner: &Inner<M>) -> bool {
        let _turn = self.write();
        let part = self.names.part(inner.name.as_str()).load();
        let found = part.get(&inner.name);
        if !found.is_some_and(|found| std::ptr::eq(&raw const **found, inner)) {
            return false;
        }
        self.names.remove(&inner.name);
        self.uuids.remove(&inner.uuid);
        true
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Inner<M>>> {
        self.names.find(name)
    }

    pub(super) fn by_uuid(&self, uuid: &Uuid) -> Option<Arc<Inner<M>>> {
        self.uuids.find(uuid)
    }

    pub(super) fn by_id(&self, id: u64) -> Option<Arc<Inner<M>>> {
        self.ids.find(&id)
    }

    pub(super) fn all(&self) -> Vec<Arc<Inner<M>>> {
        self.uuids.all()
    }
}

impl<M: Model> fmt::Debug for Registry<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::domain::{Driver, Limits};

    #[derive(Debug)]
    struct Plain;

    impl Model for Plain {
        type Config = ();
        type Definition = ();
        type Live = ();
        type Monitor = ();
        type Agent = ();
        type Statistics = ();
    }

    /// A reader looks into a map that has been replaced since: what is dead by then it does not get.
    #[test]
    fn what_has_ended_is_not_revived() {
        let driver = Driver::<Plain>::with_limits((), Limits::default());
        let domain = driver
            .define("a", Uuid::from_u128(1), ())
            .expect("the first");
        let inner = domain.inner.clone();
        let stale = Index::<String, Plain>::new();
        stale.insert(&inner.name, &inner);
        inner.leave_registry();
        assert!(driver.find_by_name("a").is_none());
        // Its handle holds it still.
        assert!(
            stale
                .find("a")
                .is_some_and(|found| !found.references.unref())
        );
        drop(domain);
        assert!(stale.find("a").is_none());
        assert!(stale.all().is_empty());
    }
}
