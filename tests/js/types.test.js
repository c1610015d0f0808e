/** tsc finds no fault in sse.js against sse.d.ts, none in shared.js, nor in a page that uses it. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const NAMES = ["../../sse/static/sse.js", "../../sse/static/shared.js", "types.ts"];
const FILES = NAMES.map((name) => fileURLToPath(new URL(name, import.meta.url)));
const OPTIONS = ["--noEmit", "--strict", "--checkJs", "--target", "es2022", "--module", "es2022"];

test("sse.js is what sse.d.ts says it is", async (t) => {
	const directory = mkdtempSync(join(tmpdir(), "tsc-"));
	t.after(() => rmSync(directory, { recursive: true }));
	try {
		await run("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--prefix", directory, "typescript@5.9"]);
	} catch (error) {
		if (process.env.CI === "true") throw error;
		return t.skip("TypeScript cannot be installed: this test needs npm (apt install npm) and its registry");
	}
	const tsc = join(directory, "node_modules/typescript/bin/tsc");
	const args = [tsc, ...OPTIONS, "--moduleResolution", "bundler", "--lib", "es2022,dom", ...FILES];
	const { stdout } = await run(process.execPath, args).catch((error) => error);
	assert.equal(stdout, "");
});
