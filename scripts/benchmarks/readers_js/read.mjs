// Reads a GLB with one library and prints what it found: node read.mjs LIBRARY FILE, in a folder with node_modules.
import { readFile } from "node:fs/promises";

const [library, path] = process.argv.slice(2);
const content = new Uint8Array(await readFile(path));

async function three() {
  const { Box3, Vector3 } = await import("three");
  const { GLTFLoader } = await import("three/addons/loaders/GLTFLoader.js");
  globalThis.self = globalThis;
  // node decodes no images: their size stands for them.
  globalThis.createImageBitmap = async (blob) => {
    const bytes = new DataView(await blob.arrayBuffer());
    return { width: bytes.getUint32(16), height: bytes.getUint32(20), close() {} };
  };
  const { scene } = await new GLTFLoader().parseAsync(content.buffer, "");
  const size = new Box3().setFromObject(scene).getSize(new Vector3());
  let mesh;
  scene.traverse((each) => (mesh = each.isMesh ? each : mesh));
  const { map, roughness, metalness } = mesh.material;
  return { extents: size.toArray(), texture: Boolean(map?.image?.width), material: roughness < 1 && metalness === 0, names: [mesh.name, mesh.parent?.name, mesh.material.name] };
}

async function gltfTransform() {
  const { NodeIO, getBounds } = await import("@gltf-transform/core");
  const document = await new NodeIO().readBinary(content);
  const root = document.getRoot();
  const { min, max } = getBounds(root.listScenes()[0]);
  const material = root.listMaterials()[0];
  return {
    extents: max.map((value, axis) => value - min[axis]),
    texture: Boolean(material.getBaseColorTexture()?.getSize()),
    material: material.getRoughnessFactor() < 1 && material.getMetallicFactor() === 0,
    names: [...root.listNodes(), ...root.listMeshes(), material].map((each) => each.getName()),
  };
}

async function validator() {
  const { default: library } = await import("gltf-validator");
  const { issues, info } = await library.validateBytes(content);
  if (issues.numErrors + issues.numWarnings) throw new Error(issues.messages[0].message);
  return { extents: null, texture: info.hasTextures, material: info.materialCount > 0, names: [] };
}

console.log(JSON.stringify(await { three, "gltf-transform": gltfTransform, "gltf-validator": validator }[library]()));
