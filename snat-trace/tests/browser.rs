//! Reports in html, opened in a real browser: it has nothing to complain about, and both of its colour schemes are drawn.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;

/// Of Chromium's settings (third_party/blink/public/mojom/css/preferred_color_scheme.mojom).
const SCHEMES: [(&str, &str); 2] = [("dark", "preferredColorScheme=0"), ("light", "preferredColorScheme=1")];

/// What begins a file of the format.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Opens a page, and has a picture made of it.
fn opened(page: &Path, scheme: &str, picture: &Path) -> std::io::Result<Output> {
    let folder = page.parent().unwrap();
    let mut chromium = Command::new("chromium");
    // As root it has no sandbox of its own, and what it would ask its maker for is no matter of the page.
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ]);
    chromium.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    chromium.args(["--enable-logging=stderr", "--window-size=900,3000"]);
    chromium.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    chromium.arg(format!("--blink-settings={scheme}")).arg(format!("--screenshot={}", picture.display()));
    chromium.arg(format!("file://{}", page.display())).output()
}

#[test]
fn a_browser_shows_reports_light_and_dark_and_complains_of_nothing() {
    let evidence = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/evidence");
    let folder = tempfile::tempdir().unwrap();
    for kernel in ["5.10", "6.12", "7"] {
        let file = evidence.join(format!("{kernel}.zst"));
        let report =
            Command::new(cargo_bin!("snat-trace")).args(["report", "--format", "html"]).arg(file).output().unwrap();
        assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
        let page = folder.path().join(format!("{kernel}.html"));
        fs::write(&page, report.stdout).unwrap();
        let pictures = SCHEMES.map(|(name, scheme)| {
            let picture = folder.path().join(format!("{kernel}-{name}.png"));
            let output = match opened(&page, scheme, &picture) {
                Err(error) if error.kind() == ErrorKind::NotFound => return None,
                output => output.unwrap(),
            };
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            // Where a page violates its own policy or has a mistake the browser says so on its console.
            assert!(!said.contains(":CONSOLE"), "{said}");
            Some(fs::read(picture).unwrap())
        });
        let [Some(dark), Some(light)] = pictures else {
            writeln!(std::io::stderr(), "skipped: no chromium here").unwrap();
            return;
        };
        assert!(dark.starts_with(PNG) && light.starts_with(PNG) && dark != light, "{kernel}");
    }
}
