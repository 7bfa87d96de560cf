use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

pub struct Nats {
    pub url: String,
    pub monitor_url: String,
    dir: PathBuf,
    child: Option<Child>,
    sync_always: bool,
    port: u16,
    http: u16,
}

fn write_conf(dir: &PathBuf, port: i32, http: i32, sync: bool) {
    let s = if sync { "sync_interval: always" } else { "" };
    std::fs::write(dir.join("n.conf"), format!("listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{http}\"\nports_file_dir: \"{d}/ports\"\njetstream {{ store_dir: \"{d}/js\"\n {s} }}\nmax_payload: 1MB\n", d=dir.display())).unwrap();
}

impl Nats {
    pub async fn start(sync_always: bool) -> Self {
        let base = std::env::var("SCRATCH_DIR").map(PathBuf::from).unwrap_or_else(|_| std::env::temp_dir());
        let dir = base.join(format!(
            "orgs-{}-{}",
            std::process::id(),
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
        ));
        std::fs::create_dir_all(dir.join("ports")).unwrap();
        write_conf(&dir, -1, -1, sync_always);
        let mut me =
            Self { url: String::new(), monitor_url: String::new(), dir, child: None, sync_always, port: 0, http: 0 };
        me.spawn();
        let text = loop {
            if let Some(p) = std::fs::read_dir(me.dir.join("ports")).unwrap().flatten().next() {
                let t = std::fs::read_to_string(p.path()).unwrap_or_default();
                if t.contains('}') {
                    break t;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let j: serde_json::Value = serde_json::from_str(&text).unwrap();
        me.url = j["nats"][0].as_str().unwrap().to_owned();
        me.monitor_url = j["monitoring"][0].as_str().unwrap().to_owned();
        me.port = me.url.rsplit(':').next().unwrap().parse().unwrap();
        me.http = me.monitor_url.rsplit(':').next().unwrap().parse().unwrap();
        write_conf(&me.dir, me.port.into(), me.http.into(), sync_always);
        me
    }
    fn spawn(&mut self) {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let bin = std::env::var("ORGSTREAM_NATS_SERVER").unwrap_or("/tmp/natsbin/bin/nats-server".into());
        self.child = Some(
            Command::new(bin).arg("-c").arg(self.dir.join("n.conf")).stdout(Stdio::null()).stderr(log).spawn().unwrap(),
        );
    }
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
    pub fn kill9(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
    pub async fn restart(&mut self) {
        self.kill9();
        let _ = self.sync_always;
        self.spawn();
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no restart");
    }
}
impl Drop for Nats {
    fn drop(&mut self) {
        self.kill9();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
