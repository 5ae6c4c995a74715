//! A webhook that is called over TLS, directly and through a proxy: whom coucou believes, and what it says.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::support::{certificates::Certificates, coucou::Coucou};

/// The heads of the requests that came somewhere.
type Heads = Arc<Mutex<Vec<String>>>;

/// Reads the head of a request, and its body as far as one is announced; `None` at the end.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&read).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(head.to_owned());
        }
    }
}

/// A receiver with the certificate for `localhost`, which can HTTP/2 as well; answers its port.
async fn receiver(certificates: &Certificates) -> (u16, Heads) {
    let chain = vec![CertificateDer::from_pem_file(certificates.path("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).unwrap();
    let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let (listener, heads) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Heads::default());
    let (port, came) = (listener.local_addr().unwrap().port(), Arc::clone(&heads));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            while let Some(head) = read_request(&mut stream).await {
                came.lock().unwrap().push(head);
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        }
    });
    (port, heads)
}

/// A proxy that connects to whatever it is asked for.
async fn proxy() -> (u16, Heads) {
    let (listener, heads) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Heads::default());
    let (port, came) = (listener.local_addr().unwrap().port(), Arc::clone(&heads));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let Some(head) = read_request(&mut stream).await else { continue };
            let to =
                head.strip_prefix("connect ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
            came.lock().unwrap().push(head);
            let mut there = TcpStream::connect(to).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut there).await });
        }
    });
    (port, heads)
}

/// What `coucou check` says of the webhooks.
async fn said(coucou: &Coucou) -> String {
    let output = coucou.run(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(" webhooks ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_believed_by_its_certificate_and_reached_through_a_proxy() {
    const TOOK: &str = "took a signed webhook.test with 204";
    let certificates = Certificates::make().await;
    let (port, heads) = receiver(&certificates).await;
    let url = |host: &str| format!("https://me:secret@{host}:{port}/hook?token=t");
    let authority = |name: &str| certificates.path(name).to_string_lossy().into_owned();
    let mut coucou = Coucou::new()
        .await
        .homeserver("http://127.0.0.1:9")
        .set("COUCOU_WEBHOOK_SECRET", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
        .set("COUCOU_WEBHOOK_URL", &url("localhost"));
    let unknown = said(&coucou).await;
    assert!(unknown.contains("fail") && unknown.contains("UnknownIssuer"), "{unknown}");
    coucou.reset("SSL_CERT_FILE", &authority("wrong.pem"));
    let wrong = said(&coucou).await;
    assert!(wrong.contains("fail") && wrong.contains("UnknownIssuer"), "{wrong}");
    coucou.reset("SSL_CERT_FILE", &authority("right.pem"));
    coucou.reset("COUCOU_WEBHOOK_URL", &url("127.0.0.1"));
    let elsewhere = said(&coucou).await;
    assert!(elsewhere.contains("fail") && elsewhere.contains("not valid for name"), "{elsewhere}");
    for text in [unknown, wrong, elsewhere] {
        assert!(!text.contains("secret@") && !text.contains("token"), "{text}");
    }
    assert!(heads.lock().unwrap().is_empty(), "nothing is said to whom is not believed");

    coucou.reset("COUCOU_WEBHOOK_URL", &url("localhost"));
    let right = said(&coucou).await;
    assert!(right.contains(TOOK), "{right}");
    let head = heads.lock().unwrap().pop().unwrap();
    assert!(head.starts_with("post /hook?token=t http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: basic bwu6c2vjcmv0"), "{head}");

    let (proxy_port, asked) = proxy().await;
    coucou.reset("HTTPS_PROXY", &format!("http://127.0.0.1:{proxy_port}"));
    let through = said(&coucou).await;
    assert!(through.contains(TOOK), "{through}");
    let head = asked.lock().unwrap().pop().unwrap();
    assert!(head.starts_with(&format!("connect localhost:{port} http/1.1")), "{head}");
    assert!(!head.contains("token") && !head.contains("basic"), "{head}");
    assert_eq!(heads.lock().unwrap().len(), 1);

    coucou.reset("NO_PROXY", "localhost");
    let around = said(&coucou).await;
    assert!(around.contains(TOOK) && asked.lock().unwrap().is_empty(), "{around}");
}
