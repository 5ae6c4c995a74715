//! Hours, alarms and arrivals, on both databases.

use ruma::{owned_room_id, owned_user_id, user_id};

use super::*;
use crate::{
    model::Role,
    store::{Store, accounts},
    testing::{self, START},
};

fn hour(network: &str, hour: i64, count: i64, last_at: i64) -> Hour {
    Hour { network: network.to_owned(), hour, count, last_at: Timestamp(last_at) }
}

fn alarm(reason: AlarmReason, subject: &str) -> Alarm {
    Alarm {
        reason,
        subject: subject.to_owned(),
        network: Some("instagram".to_owned()),
        room_id: None,
        bot: Some(owned_user_id!("@instagrambot:example.org")),
        login: None,
        status: None,
        error: None,
        since: Timestamp(1),
        told_at: Timestamp(2),
        message_id: "msg_1".to_owned(),
        ended_at: None,
    }
}

#[tokio::test]
async fn hours_are_added_up_and_forgotten() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        add_hours(&mut tx, &[]).await.unwrap();
        let first = [hour("instagram", 7, 2, 70), hour("instagram", 9, 1, 90), hour(WATCHED, 7, 1, 71)];
        add_hours(&mut tx, &first).await.unwrap();
        add_hours(&mut tx, &[hour("instagram", 7, 3, 60), hour("messenger", 8, 1, 80)]).await.unwrap();
        tx.commit().await.unwrap();
        let expected = [
            hour(WATCHED, 7, 1, 71),
            hour("instagram", 7, 5, 70),
            hour("instagram", 9, 1, 90),
            hour("messenger", 8, 1, 80),
        ];
        assert_eq!(hours(store.db()).await.unwrap(), expected);
        let of = |network: &str, first_hour, hour_count, last_at| Heard {
            network: network.to_owned(),
            first_hour,
            hour_count,
            last_at: Timestamp(last_at),
        };
        assert_eq!(heard(store.db()).await.unwrap(), [of("instagram", 7, 2, 90), of("messenger", 8, 1, 80)]);
        let mut tx = store.begin().await.unwrap();
        prune(&mut tx, 8, START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(hours(store.db()).await.unwrap(), expected[2..]);
    }
}

#[tokio::test]
async fn an_alarm_is_there_until_it_is_over_and_remembered_for_a_while() {
    for test in testing::both().await {
        let store = &test.store;
        let put = async |alarms: &[Alarm]| {
            let mut tx = store.begin().await.unwrap();
            put_alarms(&mut tx, alarms).await.unwrap();
            tx.commit().await.unwrap();
        };
        let left =
            Alarm { room_id: Some(owned_room_id!("!portal")), ..alarm(AlarmReason::BotLeft, "!portal") };
        let lost = Alarm {
            login: Some("1784".to_owned()),
            status: Some("BAD_CREDENTIALS".to_owned()),
            error: Some("code".to_owned()),
            ..alarm(AlarmReason::LoginLost, "@instagrambot:example.org 1784")
        };
        put(&[]).await;
        put(&[left.clone(), lost.clone()]).await;
        assert_eq!(alarms(store.db()).await.unwrap(), [left.clone(), lost.clone()]);
        assert_eq!(active(store.db(), 1).await.unwrap(), std::slice::from_ref(&left));
        let count = async |reason| {
            let counts = counts(store.db()).await.unwrap();
            assert_eq!(counts.len(), AlarmReason::ALL.len(), "zeros, too");
            counts.into_iter().find(|(of, _)| *of == reason).unwrap().1
        };
        assert_eq!((count(AlarmReason::BotLeft).await, count(AlarmReason::NoMessages).await), (1, 0));

        let over = Alarm { ended_at: Some(Timestamp(50)), message_id: "msg_2".to_owned(), ..left };
        put(std::slice::from_ref(&over)).await;
        assert_eq!(alarms(store.db()).await.unwrap(), [over.clone(), lost.clone()]);
        assert_eq!(active(store.db(), 9).await.unwrap(), std::slice::from_ref(&lost));
        assert_eq!(count(AlarmReason::BotLeft).await, 0);
        let mut tx = store.begin().await.unwrap();
        prune(&mut tx, 0, Timestamp(50)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(alarms(store.db()).await.unwrap().len(), 2, "not yet");
        let mut tx = store.begin().await.unwrap();
        prune(&mut tx, 0, Timestamp(51)).await.unwrap();
        drop_all(&mut tx, Timestamp(60)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(alarms(store.db()).await.unwrap(), [Alarm { ended_at: Some(Timestamp(60)), ..lost }]);
    }
}

async fn execute(store: &Store, sql: &'static str) {
    let mut tx = store.begin().await.unwrap();
    tx.execute(sql, vec![]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_network_is_read_while_an_account_is_in_a_room_of_it() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let user = user_id!("@coucou:example.org");
        accounts::insert(&mut tx, user, &"COUCOU1".into(), Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        assert!(!is_read(store.db(), "instagram").await.unwrap());
        execute(
            store,
            "INSERT INTO rooms (room_id, relay, network, bridge_bot, last_sequence, tries, created_at) VALUES \
             ('!one', 'yes', 'instagram', '@instagrambot:example.org', 0, 0, 0), \
             ('!two', 'no', 'messenger', NULL, 0, 0, 0)",
        )
        .await;
        execute(
            store,
            "INSERT INTO room_accounts (room_id, account_id, membership, tries) \
             SELECT r.room_id, a.account_id, 'join', 0 FROM rooms AS r, accounts AS a",
        )
        .await;
        assert!(is_read(store.db(), "instagram").await.unwrap());
        assert!(!is_read(store.db(), "messenger").await.unwrap(), "not relayed");
        let mut tx = store.begin().await.unwrap();
        let found = network_of(&mut tx, user_id!("@instagrambot:example.org")).await.unwrap();
        assert_eq!(found.as_deref(), Some("instagram"));
        assert_eq!(network_of(&mut tx, user_id!("@other:example.org")).await.unwrap(), None);
        tx.commit().await.unwrap();
        execute(store, "UPDATE room_accounts SET membership = 'leave'").await;
        assert!(!is_read(store.db(), "instagram").await.unwrap(), "left");
    }
}

#[tokio::test]
async fn looks_go_along_indexes() {
    for test in testing::both().await {
        let store = &test.store;
        let many: Vec<_> = (0..2000).map(|n| alarm(AlarmReason::BotLeft, &format!("!{n}"))).collect();
        let mut tx = store.begin().await.unwrap();
        put_alarms(&mut tx, &many).await.unwrap();
        tx.execute("ANALYZE", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        for (sql, values, index) in [
            (IS_READ, values!["instagram"], "rooms_"),
            (NETWORK_OF, values!["@instagrambot:example.org"], "rooms_"),
            (ACTIVE, values![100_i64], "bridge_alarms_active"),
            (COUNTS, vec![], "bridge_alarms_active"),
            (PRUNE_ALARMS, values![7_i64], "bridge_alarms_ended"),
        ] {
            let mut tx = store.begin().await.unwrap();
            if store.backend() == "postgres" {
                tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
            }
            let plan = tx.explain(sql, values, vec![]).await;
            assert!(plan.contains(index), "{sql}\n{plan}");
        }
    }
}
