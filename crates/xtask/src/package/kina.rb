class Kina < Formula
  desc "CRI runtime that gives every Kubernetes pod a virtual machine of its own"
  homepage "{homepage}"
  url "{url}"
  sha256 "{sha256}"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on macos: :tahoe

  def install
    bin.install "bin/kina"
    (libexec/"kina").install Dir["libexec/kina/*"]
    doc.install Dir["share/doc/kina/*"]
  end

  def caveats
    <<~TEXT
      kina runs pods in machines of Apple's container, 1.2.1 or later:
        https://github.com/apple/container/releases (or: brew install container)
      What is missing:  kina doctor
      As a service:     kina service install
    TEXT
  end

  test do
    assert_match "kina #{version}", shell_output("#{bin}/kina --version")
  end
end
