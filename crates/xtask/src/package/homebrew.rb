# What Homebrew does with a formula, as far as ours goes: reads it, unpacks the archive in
# the place of a download, installs by it and runs its test. Prints what it was told, and
# what lies below the prefix then.
#
# usage: ruby homebrew.rb FORMULA ARCHIVE PREFIX
require "digest"
require "fileutils"
require "json"
require "pathname"
require "tmpdir"

class Pathname
  # Moves files into this directory. Homebrew warns of what is not there; this fails.
  def install(*sources)
    sources = sources.flatten
    raise "nothing to install into #{self}" if sources.empty?

    mkpath
    sources.each { |source| FileUtils.mv(source, self) }
  end
end

class Formula
  class << self
    attr_reader :made

    def inherited(formula)
      super
      Formula.instance_variable_set(:@made, formula)
    end

    def said
      @said ||= { depends_on: [] }
    end

    %i[desc homepage url sha256 license].each do |word|
      define_method(word) { |value| said[word] = value }
    end

    def depends_on(what)
      said[:depends_on] << what
    end

    def test(&block)
      define_method(:test, &block)
    end
  end

  attr_reader :prefix

  def initialize(prefix)
    @prefix = Pathname(prefix)
  end

  def name
    self.class.name.downcase
  end

  # From the name of what is downloaded, by the rule that fits ours: `-1.2.3-`.
  def version
    self.class.said[:url][%r{[^/]+\z}][/-(\d+(?:\.\d+)+)-/, 1]
  end

  def bin = prefix/"bin"
  def libexec = prefix/"libexec"
  def doc = prefix/"share/doc"/name

  def shell_output(command)
    output = `#{command}`
    raise "#{command}: #{$?}" unless $?.success?

    output
  end

  def assert_match(expected, actual)
    raise "#{expected.inspect} is not in #{actual.inspect}" unless actual.match?(Regexp.new(Regexp.escape(expected)))
  end
end

formula, archive, prefix = ARGV
load formula
kind = Formula.made
raise "the digest is another" unless Digest::SHA256.file(archive).hexdigest == kind.said[:sha256]

made = kind.new(prefix)
Dir.mktmpdir do |folder|
  system("tar", "-xzf", archive, "-C", folder, exception: true)
  # Homebrew goes into the only directory that there is.
  inside = Dir.children(folder)
  Dir.chdir(inside.one? ? File.join(folder, inside.first) : folder) { made.install }
end
Dir.mktmpdir { |folder| Dir.chdir(folder) { made.test } }

files = Dir.glob("**/*", base: prefix).reject { |path| File.directory?(File.join(prefix, path)) }
puts JSON.generate(kind.said.merge(version: made.version, caveats: made.caveats, files: files.sort))
