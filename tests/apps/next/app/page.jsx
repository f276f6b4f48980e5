export default function Page() {
  return "An app of Sprout";
}
