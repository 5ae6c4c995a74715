//! A connection to PostgreSQL kept at hand, for reads that follow each other.
//!
//! The pool asks a connection whether it is alive whenever it is given back, which makes two round trips of every read.
//! A step of the inbox reads a dozen times in a row, and the crypto machine once for every room key. So the connection of
//! a read that went well is kept for the next one, as long as the pool has others to give.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::time::Instant;

use super::{TRUSTED, pool::Pool, sessions::Sessions};

/// After so long the pool gets a connection back, however busy it is: the pool ends those that are old.
const LONGEST: Duration = Duration::from_mins(1);

/// A connection that a read has to itself.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) connection: PoolConnection<Postgres>,
    /// When the pool gave it.
    from_pool_at: Instant,
}

/// One that is kept, and since when it is idle.
type Idle = (Taken, Instant);

/// A place for one connection; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    idle: Mutex<Option<Idle>>,
    /// Transactions that wait for a connection of the pool's.
    wanted: AtomicUsize,
}

/// Somebody waits for a connection of the pool's: as long as this lives none is kept from it.
pub(super) struct Wanted(Arc<Place>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Option<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    /// Nobody uses the pool any more, and giving back takes a runtime, which may be gone as well.
    fn drop(&mut self) {
        drop(self.lock().take().map(|(taken, _)| taken.connection.detach()));
    }
}

impl Kept {
    /// The connection that was kept, or one of the pool's; and the pool that it belongs to.
    pub(super) async fn take(
        &self,
        pool: &Pool,
        sessions: &Sessions,
    ) -> Result<(Taken, PgPool), sqlx::Error> {
        // The pool looks after one that was idle for longer.
        let kept = self.0.lock().take().filter(|(taken, since)| {
            since.elapsed() < TRUSTED && sessions.are_trusted_since(taken.from_pool_at.elapsed())
        });
        if let Some((taken, _)) = kept {
            return Ok((taken, pool.current()));
        }
        loop {
            let current = pool.current();
            match current.acquire().await {
                Ok(connection) => {
                    return Ok((Taken { connection, from_pool_at: Instant::now() }, current));
                }
                Err(error) if pool.is_too_large(&current, &error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps a connection after a read that went well. The pool gets it back when one is kept already, when it has no
    /// other, when somebody waits for one, and every minute.
    pub(super) fn keep(&self, taken: Taken, pool: &PgPool) {
        let mut place = self.0.lock();
        let is_last = pool.num_idle() == 0 && pool.size() >= pool.options().get_max_connections();
        let is_free =
            place.is_none() && !is_last && !pool.is_closed() && self.0.wanted.load(Ordering::SeqCst) == 0;
        if is_free && taken.from_pool_at.elapsed() < LONGEST {
            *place = Some((taken, Instant::now()));
        }
    }

    /// Announces that a connection of the pool's is needed, and gives back the one that is kept if there may be no other.
    pub(super) fn want(&self, pool: &PgPool) -> Wanted {
        let mut place = self.0.lock();
        let wanted = self.0.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        let can_open = pool.options().get_max_connections().saturating_sub(pool.size());
        if pool.num_idle() + usize::try_from(can_open).unwrap_or(0) < wanted {
            drop(place.take());
        }
        Wanted(Arc::clone(&self.0))
    }

    /// Gives the connection back.
    pub(super) fn give_back(&self) {
        drop(self.0.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        store::{Db, Location, db::values},
        testing,
    };

    const BACKEND: &str = "SELECT CAST(pg_backend_pid() AS BIGINT)";

    async fn backend(db: &Db) -> i64 {
        db.fetch_optional::<(i64,)>(BACKEND, vec![]).await.unwrap().unwrap().0
    }

    fn pool_of(location: &Location, size: u32) -> Db {
        let Location::Postgres { options, .. } = location else { panic!("not PostgreSQL") };
        Db::open(&Location::Postgres { options: options.clone(), pool_size: size }).unwrap()
    }

    #[tokio::test]
    async fn reads_that_follow_each_other_share_a_connection_that_the_pool_does_not_see_again() {
        let test = testing::postgres().await;
        let db = pool_of(&test.location, 4);
        let (mut last, mut at) = (backend(&db).await, Instant::now());
        for _ in 0..5 {
            let read = backend(&db).await;
            // A machine that stalls for so long leaves it to the pool.
            assert!(read == last || at.elapsed() >= TRUSTED, "{read} is another connection than {last}");
            (last, at) = (read, Instant::now());
            let asked: Option<(Option<String>,)> = test
                .store
                .db()
                .fetch_optional("SELECT query FROM pg_stat_activity WHERE pid = $1", values![read])
                .await
                .unwrap();
            // Of a connection that was given back it would be the pool's question, which is empty.
            assert_eq!(asked, Some((Some(BACKEND.to_owned()),)));
        }
        let many = join_all((0..20).map(|_| backend(&db))).await;
        assert!(many.contains(&last) || at.elapsed() >= TRUSTED, "{many:?}");
    }

    #[tokio::test]
    async fn a_connection_that_is_kept_is_there_for_whoever_needs_the_last_one() {
        let test = testing::postgres().await;
        for size in [1, 2] {
            let db = pool_of(&test.location, size);
            for _ in 0..3 {
                join_all((0..4).map(|_| backend(&db))).await;
                let begun = join_all((0..size).map(|_| timeout(Duration::from_secs(4), db.begin()))).await;
                for tx in begun {
                    tx.expect("a transaction begins at once").unwrap().commit().await.unwrap();
                }
            }
            timeout(Duration::from_secs(4), db.close()).await.expect("nothing is held back");
        }
    }

    #[tokio::test]
    async fn a_read_that_fails_or_is_cut_off_leaves_no_connection_behind() {
        let test = testing::postgres().await;
        let db = pool_of(&test.location, 4);
        let first = backend(&db).await;
        let slow = db.fetch_optional::<(i64,)>("SELECT CAST(1 AS BIGINT) FROM pg_sleep(30)", vec![]);
        assert!(timeout(Duration::from_millis(300), slow).await.is_err());
        assert_ne!(backend(&db).await, first, "a connection on which something still runs was kept");
        assert!(db.fetch_optional::<(i64,)>("SELECT 1 / 0", vec![]).await.is_err());
        backend(&db).await;
    }
}
