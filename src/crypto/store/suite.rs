//! The SDK's own conformance suite for crypto stores, on both databases.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use ruma::{device_id, user_id};

use super::AccountStore;
use crate::{
    clock::SystemClock,
    model::{AccountId, Role},
    store::accounts,
    testing::{self, START, TestStore},
};

thread_local! {
    /// The suite's databases by name. Each of its tests has a thread and names of its own; what it made is
    /// dropped with the thread.
    static DATABASES: RefCell<HashMap<String, (Arc<TestStore>, AccountId)>> = RefCell::default();
}

/// Puts a fresh database under `name`.
async fn make(name: &str, test: TestStore) -> (Arc<TestStore>, AccountId) {
    let mut tx = test.store.begin().await.unwrap();
    let (user, device) = (user_id!("@alice:example.org"), device_id!("ALICEDEVICE").to_owned());
    let account = accounts::insert(&mut tx, user, &device, Role::Bot, START).await.unwrap();
    tx.commit().await.unwrap();
    let made = (Arc::new(test), account);
    DATABASES.with_borrow_mut(|databases| databases.insert(name.to_owned(), made.clone()));
    made
}

/// Opens what is under `name`, as a process of its own would.
async fn open((test, account): (Arc<TestStore>, AccountId)) -> AccountStore {
    let store = testing::open(&test.location, "test pickle key");
    store.prepare(START).await.unwrap();
    AccountStore::new(store, account, None, Arc::new(SystemClock))
}

fn made(name: &str) -> Option<(Arc<TestStore>, AccountId)> {
    DATABASES.with_borrow(|databases| databases.get(name).cloned())
}

macro_rules! suite {
    ($database:ident) => {
        #[expect(clippy::ignore_without_reason, reason = "the suite's own")]
        mod $database {
            use matrix_sdk_crypto::{cryptostore_integration_tests, cryptostore_integration_tests_time};

            use super::AccountStore;

            async fn get_store(name: &str, _passphrase: Option<&str>, clear_data: bool) -> AccountStore {
                let made = if clear_data { None } else { super::made(name) };
                let made = match made {
                    Some(made) => made,
                    None => super::make(name, crate::testing::$database().await).await,
                };
                super::open(made).await
            }

            cryptostore_integration_tests!();
            cryptostore_integration_tests_time!();
        }
    };
}

suite!(postgres);
suite!(sqlite);
